"""Engines on meshes of eight simulated devices, compared with one device. Run as a program: the number of devices is
fixed when JAX starts."""

import json
import sys

import jax
import numpy as np

from ling_jax.engine import Engine, Request, memory_for
from ling_jax.parallel.sharding import make_mesh
from tests.helpers.engines import END, FIELDS, check_places, prompt_of, release_all, results
from tests.helpers.tiny import random_params, tiny_config

SLOTS, MAX_TOKENS = 16, 64


def model_of(family: str):
    config = tiny_config(family, **FIELDS | {"max_length": 256, "num_kv_heads": 4})
    return config, *(random_params(config, seed=seed, dtype="float32", std=0.2) for seed in (0, 1))


def engine_on(sizes, family="2.6", load=True, **more) -> Engine:
    """On a mesh of these sizes; None: on one device. All have memory for as many requests."""
    config, params, _ = model_of(family)
    mesh = None if sizes is None else make_mesh(sizes)
    fields = dict(prefill_tokens=32) | more
    memory = memory_for(config, slots=SLOTS, max_tokens=MAX_TOKENS, parked=SLOTS, mesh=mesh)
    engine = Engine(config, slots=SLOTS, memory_bytes=memory, mesh=mesh, **fields)
    if load:
        engine.load(params, version=0)
    return engine


def requests() -> list[Request]:
    """More than there are slots: greedy and drawn, of many lengths, with and without what the host looks at."""
    kinds = [
        dict(temperature=0.0), dict(), dict(top_k=5, top_p=0.9), dict(stop_ids=(END,), min_new_tokens=2),
        dict(record_experts=True), dict(prompt_logprobs=True), dict(repetition_penalty=1.3, top_logprobs=3),
        dict(logit_bias={3: 2.0}, temperature=0.0),
    ]  # fmt: skip
    lengths = (1, 3, 15, 16, 17, 30, 45, 7, 22)
    return [
        Request(i, prompt_of(i, lengths[i % 9]), 5 + 3 * (i % 5), seed=100 + i, priority=i % 2, **kinds[i % 8])
        for i in range(27)
    ]


def story(engine: Engine) -> list:
    """The events of requests that come, are extended, cancelled and paused, under new weights, until all have ended."""
    events, wanted = [], requests()
    for request in wanted[:20]:
        engine.submit(request)
    extended = set()
    for step in range(400):
        if not engine.busy:
            break
        if step == 2:
            engine.cancel(9)
            engine.resume(engine.pause(10))
            for request in wanted[20:]:
                engine.submit(request)
        new = engine.step()
        check_places(engine)
        events += new
        for event in new:
            if event.finish_reason in ("stop", "length") and event.id not in extended and event.id % 3 == 0:
                extended.add(event.id)
                engine.extend(event.id, prompt_of(event.id + 50, 4), 6)
    assert not engine.busy
    return events


def gathered(events) -> dict:
    """{id: what it got}, whatever the steps in which it came."""
    found = {}
    for id, (tokens, logps) in results(events).items():
        own = [event for event in events if event.id == id]
        experts = [event.experts for event in own if event.experts is not None]
        found[id] = dict(
            tokens=tokens,
            logps=np.array(logps),
            reasons=[event.finish_reason for event in own if event.finish_reason],
            prompt=np.array([logp for event in own for logp in event.prompt_logps]),
            experts=np.concatenate(experts).tolist() if experts else [],
            top=[[token for token, _ in top] for event in own for top in event.top_logprobs],
        )
    return found


def check_same(found: dict, wanted: dict, what) -> None:
    """Tokens, experts and reasons equal; log-probs to float32's rounding: sums are in another order."""
    assert found.keys() == wanted.keys()
    worst = 0.0
    for id, of_one in wanted.items():
        for name in ("tokens", "reasons", "experts", "top"):
            if id == 9 and name == "tokens":  # cancelled in a step that depends on the engine
                continue
            assert found[id][name] == of_one[name], (what, id, name, found[id][name], of_one[name])
        for name in ("logps", "prompt"):
            if id != 9:
                worst = max(worst, np.max(np.abs(found[id][name] - of_one[name]), initial=0))
    assert worst < 1e-5, (what, worst)
    print("equal", what, worst, flush=True)


def check_story(family: str, *meshes: dict) -> None:
    wanted = gathered(story(engine_on(None, family)))
    for sizes in meshes:
        engine = engine_on(sizes, family)
        check_same(gathered(story(engine)), wanted, (family, sizes))
        release_all(engine)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    match sys.argv[1:]:
        case ["story", family, *meshes]:
            check_story(family, *map(json.loads, meshes))

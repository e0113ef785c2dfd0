"""The server against its engine, and under load: mixed requests, disconnects, malformed bodies, JSON schemas.

python -m benchmarks.server --json_out=server.json [--quick]
"""

import asyncio
import functools
import json
import random
import resource
import sys
import time
from typing import Any

import jax
import jsonschema
import numpy as np
from absl import app, flags

from benchmarks.json_out import JSON_OUT
from benchmarks.models import HYBRID
from benchmarks.report import Claim, Figure, check_json_out, finish
from benchmarks.server_bodies import bad_bodies, mixed_requests, random_schemas
from benchmarks.server_client import Answered, Asked, ask_all
from ling_jax import model
from ling_jax.chat.template import TOOLS_BLOCK, XML_FORMAT, ChatTemplate
from ling_jax.checkpoint.folder import Loaded
from ling_jax.config import ModelConfig, model_config
from ling_jax.data.tokenizer import train_bpe
from ling_jax.engine import EXACT_TILE, Engine, Request, memory_for
from ling_jax.engine.schedule import PIECE
from ling_jax.serve.app import Server
from ling_jax.serve.http import Keys, Limits
from ling_jax.serve.run import in_thread, prepare

QUICK = flags.DEFINE_bool("quick", False, "fewer requests and repetitions: one to three minutes")

STREAMS, CONTEXT = 32, 512
CONNECTIONS, DISTINCT, CUT_SHARE = 64, 200, 0.15
WHOLE = 2000, 5000, 500, 3, 20  # mixed requests, malformed bodies, schemas, turns of the overhead, their steps
FEW = 100, 300, 10, 1, 5
SMALL = dict(num_layers=2, layer_group_size=2, first_dense_layers=2, hidden_size=32, num_heads=2, head_dim=16,
             num_norm_groups=1, rotary_dim=8, q_lora_rank=8, kv_lora_rank=8, nope_dim=8, rope_dim=8, v_dim=8,
             ffn_size=32, vocab_size=640, max_length=2048, mtp_depth=0)  # fmt: skip
TEXTS = [TOOLS_BLOCK, XML_FORMAT, "<role>SYSTEM</role>detailed thinking off some words"] * 2


def main(argv) -> None:
    del argv
    check_json_out(JSON_OUT.value)
    mixed, malformed, schemas, turns, pieces = FEW if QUICK.value else WHOLE
    claims, figures = overhead(turns, pieces)
    server = server_of(model_config("tiny-2.6", **SMALL), slots=EXACT_TILE, max_tokens=2048)
    with in_thread(server) as url:
        more = under_load(server, url, mixed)
        claims, figures = claims + more[0], figures + more[1]
        claims += [malformed_claim(url, malformed), schema_claim(url, schemas)]
        claims.append(slots_claim(server, mixed))
    command = "python -m benchmarks.server" + (" --quick" if QUICK.value else "")
    sys.exit(finish(claims, command, JSON_OUT.value, figures=figures))


def server_of(config: ModelConfig, *, slots: int, max_tokens: int) -> Server:
    """A server of random weights; exact with 64 slots or more."""
    params = jax.jit(functools.partial(model.init, config=config))(jax.random.key(0))
    memory = memory_for(config, slots=slots, max_tokens=max_tokens)
    engine = Engine(config, slots=slots, memory_bytes=memory, row_tile=EXACT_TILE if slots >= EXACT_TILE else None)
    engine.load(params, version=0)
    engine.warm_up()
    loaded = Loaded(params, config, train_bpe(TEXTS, 630), ChatTemplate())
    return Server(engine, prepare(loaded, engine, "random"), Limits(choices=4096), Keys())


# Overhead.


def overhead(turns: int, pieces: int) -> tuple[list[Claim], list[Figure]]:
    """The engine's tokens/s without and with the server around it, by turns; the best of each counts.

    Each stream counts from its first event to its last, `pieces` steps later: how requests come in is left out.
    """
    server = server_of(model_config("tiny-2.6", **HYBRID), slots=STREAMS, max_tokens=CONTEXT)
    speed: dict[str, list[float]] = {"engine": [], "server": []}
    with in_thread(server) as url:
        engine_speed(server, 1)  # warms up
        for _ in range(turns):
            speed["engine"].append(engine_speed(server, pieces))
            speed["server"].append(server_speed(url, pieces))
    best = {name: max(found) for name, found in speed.items()}
    workload = f"110M parameters, {STREAMS} streams of {PIECE * (pieces + 1)} tokens; clients in a process beside; "
    workload += f"engine {best['engine']:.0f} tokens/s, server {best['server']:.0f}; {turns} turns"
    claim = Claim("overhead", 1 - best["server"] / best["engine"], "of engine", "<=", 0.1, workload)
    return [claim], [Figure("server_tokens", best["server"], "tokens/s", workload)]


def prompt(number: int) -> list[int]:
    """Of a stream; all differ."""
    return [1 + number, 7, 9]


def engine_speed(server: Server, pieces: int) -> float:
    """Tokens/s of the engine alone, in the thread in which it serves."""

    def drawn(engine: Engine) -> float:
        for number in range(STREAMS):
            engine.submit(Request(number, prompt(number), PIECE * (pieces + 1), seed=number))
        first: dict[Any, float] = {}
        last: dict[Any, float] = {}
        while engine.busy:
            events, now = engine.step(), time.perf_counter()
            for event in events:
                first.setdefault(event.id, now)
                last[event.id] = now
        for number in range(STREAMS):
            engine.release(number)
        return sum(PIECE * pieces / (last[id] - first[id]) for id in first)

    return asyncio.run(server.service.read(drawn))


def server_speed(url: str, pieces: int) -> float:
    """Tokens/s of as many streams over HTTP, in which each event of the engine is one of the stream."""
    body = {"max_tokens": PIECE * (pieces + 1), "stream": True, "ignore_eos": True, "return_token_ids": True}
    bodies = [body | {"prompt": prompt(number), "seed": number} for number in range(STREAMS)]
    answers, _ = ask_all(url, [Asked("/v1/completions", json.dumps(body)) for body in bodies], STREAMS)
    assert all(answer.status == 200 and answer.body.endswith("[DONE]\n\n") for answer in answers)
    return sum(PIECE * pieces / (answer.seconds - answer.first) for answer in answers)


# Load.


def under_load(server: Server, url: str, count: int) -> tuple[list[Claim], list[Figure]]:
    """Mixed requests from many connections, of which some are cut, against the same requests alone."""
    rng, distinct = random.Random(1), mixed_requests(min(DISTINCT, count), seed=0)
    bodies = [(path, json.dumps(body)) for path, body in distinct]
    alone, _ = ask_all(url, [Asked(*body) for body in bodies], 1)
    numbers = [number % len(bodies) for number in range(count)]
    rng.shuffle(numbers)
    cuts = [rng.randint(1, 5) if rng.random() < CUT_SHARE else 0 for _ in numbers]
    requests = [Asked(*bodies[number], cut) for number, cut in zip(numbers, cuts, strict=True)]
    answers, _ = ask_all(url, requests[: count // 2], CONNECTIONS)
    before = memory_bytes()
    answers += ask_all(url, requests[count // 2 :], CONNECTIONS)[0]
    wrong = sum(
        not is_same(answer, alone[number], bool(cut))
        for answer, number, cut in zip(answers, numbers, cuts, strict=True)
    )
    workload = f"{count} requests of {len(bodies)} kinds, {CONNECTIONS} connections, {sum(map(bool, cuts))} of them cut"
    claim = Claim("lost_or_mixed", wrong, f"of {count}", "<=", 0, workload)
    streams = [answer for answer, number, cut in zip(answers, numbers, cuts, strict=True)
               if not cut and distinct[number][1]["stream"]]  # fmt: skip
    first = [answer.token for answer in streams]
    each = [(answer.seconds - answer.token) / max(answer.body.count("\n\n") - 3, 1) for answer in streams]
    figures = [
        Figure(f"{name}.p{share}", 1000 * float(np.percentile(values, share)), "ms", workload)
        for name, values in (("first_token", first), ("between_events", each))
        for share in (50, 99)
    ]
    growth = (memory_bytes() - before) / 1e6
    return [claim], [
        *figures,
        Figure("memory_growth", growth, "MB", f"of the process, in the second half of {workload}"),
    ]


def memory_bytes() -> int:
    """The most that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_same(answer: Answered, alone: Answered, cut: bool) -> bool:
    """Whether an answer says what the request got alone; one that was cut, the beginning of that."""
    if cut and answer.status in (0, 200) and not answer.body.endswith(("}", "[DONE]\n\n")):
        return not answer.body.startswith("data: ") or begins(said(answer.body), said(alone.body))
    return answer.status == 200 == alone.status and said(answer.body) == said(alone.body)


def said(body: str) -> dict[int, Any]:
    """{choice: its fields} of a body; of a stream the joined pieces. Ids are left out."""
    if not body.startswith("data: "):
        return {choice["index"]: _without_ids(choice) for choice in json.loads(body)["choices"]}
    found: dict[int, list[Any]] = {}
    for event in body.split("\n\n"):
        for choice in json.loads(event.removeprefix("data: "))["choices"] if event.startswith("data: {") else ():
            found.setdefault(choice.pop("index"), []).append(_without_ids(choice))
    return {index: _joined(pieces) for index, pieces in found.items()}


def begins(part: Any, whole: Any) -> bool:
    """Whether values are the beginning of others."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(begins(value, whole.get(key)) for key, value in part.items())
    return part is None or whole[: len(part)] == part


def _joined(pieces: list[Any]) -> Any:
    """Texts and lists one after the other, objects field by field."""
    pieces = [piece for piece in pieces if piece is not None]
    if pieces and isinstance(pieces[0], dict):
        keys = dict.fromkeys(key for piece in pieces for key in piece)
        return {key: _joined([piece.get(key) for piece in pieces]) for key in keys}
    if pieces and isinstance(pieces[0], list):
        return [item for piece in pieces for item in piece]
    return "".join(pieces)


def _without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if key not in ("id", "role")}
    return [_without_ids(item) for item in value] if isinstance(value, list) else value


def slots_claim(server: Server, count: int) -> Claim:
    """What is left in the engine a moment after the load."""
    end = time.monotonic() + 10
    while (server.engine.slots_in_use or server.pending or server.engine.ids) and time.monotonic() < end:
        time.sleep(0.05)
    left = max(server.engine.slots_in_use, server.pending, len(server.engine.ids))
    return Claim("slots_leaked", left, "slots", "<=", 0, f"after {count} mixed requests, malformed bodies and schemas")


def malformed_claim(url: str, count: int) -> Claim:
    asked = [Asked(path, body.decode("latin-1")) for path, body in bad_bodies(count, seed=0)]
    answers, seconds = ask_all(url, asked, CONNECTIONS)
    failed = sum(not 200 <= answer.status < 500 for answer in answers)
    refused = sum(400 <= answer.status < 500 for answer in answers)
    workload = f"{count} bodies with wrong types, huge numbers, broken UTF-8, deep nesting, unknown fields; "
    workload += f"{refused} refused, the others answered; {seconds:.0f} s"
    return Claim("malformed_500s", failed, f"of {count}", "<=", 0, workload)


def schema_claim(url: str, count: int) -> Claim:
    schemas = random_schemas(count, seed=0)
    answers, seconds = ask_all(
        url, [Asked("/v1/chat/completions", _schema_body(i, s)) for i, s in enumerate(schemas)], 16
    )
    valid = sum(_is_valid(answer, schema) for answer, schema in zip(answers, schemas, strict=True))
    workload = f"{count} random schemas, answers of a random model; {seconds:.0f} s"
    return Claim("schema_valid", valid, f"of {count}", ">=", count, workload)


def _schema_body(seed: int, schema: dict[str, Any]) -> str:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    messages = [{"role": "user", "content": "some words"}]
    return json.dumps({"messages": messages, "seed": seed, "max_tokens": 1500, "response_format": form})


def _is_valid(answer: Answered, schema: dict[str, Any]) -> bool:
    if answer.status != 200:
        return False
    (choice,) = json.loads(answer.body)["choices"]
    try:
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return choice["finish_reason"] == "stop"


if __name__ == "__main__":
    app.run(main)

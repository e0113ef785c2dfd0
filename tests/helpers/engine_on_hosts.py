"""An engine on a mesh of eight devices of one or several processes: `PORT PROCESSES INDEX MESH [die]`.

The first process prints a digest of all that its requests got, under weights that change on the way. With "die" the
last one ends itself in the middle.
"""

import hashlib
import json
import os
import signal
import sys

import jax
import numpy as np

from ling_jax.distributed import hosts
from ling_jax.distributed.rendezvous import ProcessInfo
from ling_jax.engine.follow import follow
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import make_mesh, shardings
from tests.helpers.engine_on_mesh import engine_on, model_of, requests

DIES_AFTER = 6  # calls
SECONDS = 20  # without a sign of life


def story(engine, weights) -> str:
    """A digest of the bits of all events."""
    digest = hashlib.sha256()
    for request in requests():
        engine.submit(request)
    for step in range(1000):
        if step == 3:
            engine.load(weights[1], version=1, in_flight="keep")
        if step == 6:
            engine.load(weights[0], version=2, in_flight="recompute")
        if step == 8:
            engine.load(weights[1], version=3, in_flight="drain")
        for event in engine.step():
            digest.update(repr((event.id, event.first, event.tokens, event.finish_reason, event.version)).encode())
            digest.update(np.float32((*event.logps, *event.prompt_logps)).tobytes())
            digest.update(b"" if event.experts is None else event.experts.tobytes())
        if not engine.busy:
            break
    engine.step()  # all have ended, and the last weights are in use
    assert not engine.busy and engine.version == 3
    return digest.hexdigest()


def main() -> None:
    port, count, index, sizes, *die = sys.argv[1:]
    count, index = int(count), int(index)
    jax.config.update("jax_num_cpu_devices", 8 // count)
    if count > 1:
        hosts.join(ProcessInfo(f"localhost:{port}", count, index), {}, SECONDS)
    try:
        engine = engine_on(json.loads(sizes), load=False)
        weights = trained()
        if engine.leads:
            engine.load(weights[0], version=0)
            print("bits", story(engine, weights), flush=True)
            engine.close()
        else:
            calls = iter(range(DIES_AFTER))
            if die and index == count - 1:
                dying(engine.device, calls)
            follow(engine, lambda version: weights[version % 2])
    except BaseException as error:
        hosts.fail(error)
        raise
    hosts.leave()


def trained() -> list:
    """Two sets of weights as a trainer on all devices has them."""
    config, *both = model_of("2.6")
    placed = shardings(model_spec(config), make_mesh({"fsdp": 4, "expert": 2}))

    def leaf(x, place):
        return jax.make_array_from_callback(x.shape, place, lambda index: np.asarray(x)[index])

    return [jax.tree.map(leaf, params, placed) for params in both]


def dying(device, calls) -> None:
    """The device ends its process behind some calls."""
    start = device.start_tiles

    def start_or_die(*arguments):
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return start(*arguments)

    device.start_tiles = start_or_die


if __name__ == "__main__":
    main()

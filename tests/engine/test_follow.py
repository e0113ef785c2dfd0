"""Two processes are one engine: the bits of one process, and one end."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from ling_jax.distributed.broadcast import Broadcast
from ling_jax.engine.follow import follow
from tests.helpers.engines import small_engine
from tests.helpers.faults import ROOT
from tests.launch.test_many_hosts import free_port

MESHES = '{"data": 8}', '{"data": 2, "expert": 2, "tensor": 2}'


def outputs(count: int, mesh: str, *more: str) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each of so many processes with one engine."""
    port = str(free_port())
    programs = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.engine_on_hosts", port, str(count), str(index), mesh, *more],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ,
        )
        for index in range(count)
    ]  # fmt: skip
    try:
        found = [program.communicate(timeout=1200) for program in programs]
    finally:
        for program in programs:
            program.kill()
    return [(program.returncode, *texts) for program, texts in zip(programs, found, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_two_processes_give_the_bits_of_one(mesh):
    """Weights change three times in the middle, and every way of reading and drawing runs."""
    ((code, wanted, error),) = outputs(1, mesh)
    assert code == 0 and wanted.startswith("bits"), error
    first, second = outputs(2, mesh)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert wanted.strip() in first[1] and "bits" not in second[1]


@pytest.mark.slow
def test_a_follower_that_dies_ends_the_first_process_with_its_name():
    first, second = outputs(2, MESHES[1], "die")
    assert second[0] == -signal.SIGKILL and first[0] == 1
    assert "error: host 1 (" in first[2] and "no sign of life in 20 seconds" in first[2]


def test_the_process_that_schedules_cannot_follow():
    with pytest.raises(ValueError, match="this process is the first of the engine's mesh"):
        follow(small_engine(load=False), dict.__getitem__)


def test_a_message_has_its_size():
    link = Broadcast(jax.devices()[:1], 3)
    link.send(np.arange(3, dtype=np.int32))
    assert link.leads
    with pytest.raises(ValueError, match=r"a message is int64 \(2,\); expected int32 \(3,\)"):
        link.send(np.arange(2))

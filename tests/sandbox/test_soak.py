"""Many runs, a fifth of them hostile, leave nothing behind."""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.sandbox_attacks import procfs
from ling_jax.sandbox import Limits, Sandbox
from tests.helpers.boxes import TIERS, eventually, needs

CLIENTS = 4
PYTHON = ("python3", "-I", "-S", "-c")
HARSH = Limits(seconds=0.5, memory_bytes=64 << 20, processes=16, disk_bytes=4 << 20, files=128, output_bytes=1 << 16)
HOSTILE = (  # each leaves something, or ends badly
    ("bash", "-c", "setsid sleep 100 & disown; kill -9 $$"),
    ("bash", "-c", "f() { f | f & }; f; sleep 2"),
    ("bash", "-c", "yes; true"),
    ("bash", "-c", "kill -STOP $$"),
    ("bash", "-c", "for i in $(seq 300); do mkdir -p d$i/e || break; done; mkfifo p; ln -s / l; chmod 0 d1; exit 1"),
    (*PYTHON, "held = []\nwhile True: held.append(bytearray(b'1' * (1 << 20)))"),
    (*PYTHON, "import os\nwhile True: os.write(os.open('f', os.O_CREAT | os.O_WRONLY | os.O_APPEND), b'1' * 65536)"),
    (*PYTHON, "import os, time\nos.closerange(0, 100)\nif os.fork() == 0: os.setsid()\ntime.sleep(100)"),
    (*PYTHON, "import os\nos.kill(os.getppid(), 9)\nos.kill(0, 9)"),
    (*PYTHON, "import os\nwhile os.fork(): os._exit(0)"),
)


def state(scratch: Path) -> dict[str, object]:
    """Processes, descriptors and temporary files that this process and its children have."""
    children = procfs.descendants(os.getpid())
    return {
        "processes": len(children),
        "descriptors": procfs.descriptors(os.getpid()),
        "descriptors of the sandbox": sum(map(procfs.descriptors, children)),
        "temporary files": sorted(os.listdir(scratch)),
    }


def run_one(sandbox: Sandbox, number: int) -> float | None:
    """Seconds of a run that means well; None of a hostile one, which ends in time and with a status."""
    start = time.monotonic()
    if number % 5 == 0:
        result = sandbox.run(HOSTILE[number // 5 % len(HOSTILE)], limits=HARSH)
        assert result.status in ("exited", "timeout", "memory", "disk", "killed")
        assert len(result.stdout) <= HARSH.output_bytes
        return None
    result = sandbox.run((*PYTHON, f"print({number})"))
    assert (result.status, result.code, result.stdout) == ("exited", 0, b"%d\n" % number)
    return time.monotonic() - start


def soak(tier: str, runs: int, scratch: Path) -> list[float]:
    """Seconds of each run that meant well, sorted; the state before and after is the same."""
    with Sandbox(tier) as sandbox, ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda number: run_one(sandbox, number), range(4 * CLIENTS)))
        time.sleep(1.0)  # until boxes wait in the pool again
        before = state(scratch)
        times = list(pool.map(lambda number: run_one(sandbox, number), range(runs)))
        assert eventually(lambda: state(scratch) == before), (before, state(scratch))
    return sorted(each for each in times if each is not None)


@pytest.fixture
def scratch(monkeypatch):
    """The folder of all temporary files. It is open to the users that boxes run as; pytest's own folders are not."""
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.mark.parametrize(
    ("tier", "runs"), [("T3", 60), *(pytest.param(tier, 10_000, marks=pytest.mark.slow) for tier in TIERS)]
)
def test_runs_leave_nothing_behind(runs, tier, scratch):
    needs(tier)
    children = procfs.descendants(os.getpid())
    times = soak(tier, runs, scratch)
    assert procfs.descendants(os.getpid()) <= children
    assert os.listdir(scratch) == []
    half, most = (1000 * times[int(share * len(times))] for share in (0.5, 0.99))
    print(f"{tier}, {runs} runs, {CLIENTS} at a time: p50 {half:.0f} ms, p99 {most:.0f} ms")

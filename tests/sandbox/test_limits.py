import time

import pytest

from ling_jax.sandbox import Limits
from tests.helpers.boxes import python

MIB = 1 << 20


@pytest.fixture
def small(sandbox):
    limits = Limits(seconds=5, memory_bytes=96 * MIB, processes=16, disk_bytes=4 * MIB, files=64, output_bytes=1000)
    with sandbox.open(limits=limits) as opened:
        yield opened


def works(box) -> bool:
    return box.run(["bash", "-c", "echo works"]).stdout == b"works\n"


@pytest.mark.parametrize(
    "source",
    (
        "while True: pass",
        "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "sum(range(10 ** 12))",
        "import os\nfor n in range(3): os.close(n)\nwhile True: pass",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import os, signal\nif os.fork(): os.wait()\nelse: os.kill(os.getppid(), signal.SIGSTOP); os.kill(0, 19)",
    ),
)
def test_a_deadline_ends_a_command(small, source):
    begun = time.monotonic()
    result = python(small, source, seconds=0.5)
    assert (result.status, result.code) == ("timeout", None)
    assert time.monotonic() - begun < 3
    assert works(small)


def test_a_longer_deadline_than_the_limit_is_the_limit(sandbox):
    with sandbox.open(limits=Limits(seconds=0.3)) as box:
        assert box.run(["sleep", "5"], seconds=60).status == "timeout"


def test_output_is_capped_and_the_command_is_not_held_up(small):
    result = python(small, "import sys\nsys.stdout.write('o' * 10 ** 7); sys.stderr.write('e' * 10 ** 6)")
    assert (result.status, result.code, result.truncated) == ("exited", 0, True)
    assert (result.stdout, result.stderr) == (b"o" * 1000, b"e" * 1000)


def test_output_of_the_limits_length_is_whole(small):
    assert not python(small, "print('o' * 999)").truncated


def test_a_flood_without_end_meets_the_deadline(small):
    result = small.run(["bash", "-c", "yes & yes >&2 & yes"], seconds=0.5)
    assert result.status == "timeout" and result.truncated and len(result.stdout) == 1000
    assert works(small)


def test_memory_of_one_process_is_bounded(small):
    result = python(small, "held = []\nwhile True: held.append(bytearray(1 << 20))")
    assert result.status == "memory" or b"MemoryError" in result.stderr, result
    assert works(small)


def test_memory_of_all_processes_together_is_bounded(small):
    source = """
import os, time
for _ in range(8):
    if not os.fork():
        held = [bytearray(os.urandom(1) * (1 << 20)) for _ in range(60)]
        time.sleep(4)
        os._exit(0)
codes = [os.wait()[1] for _ in range(8)]
print('all lived' if not any(codes) else 'some died')"""
    result = python(small, source)
    assert b"all lived" not in result.stdout, result
    assert works(small)


@pytest.mark.parametrize("source", (":(){ :|:& };:", "while true; do sleep 9 & done", "while true; do (exit) & done"))
def test_a_flood_of_forks_is_bounded(small, source):
    small.run(["bash", "-c", source], seconds=1)
    assert works(small)


def test_processes_are_counted(small):
    source = """
import os, time
count = 0
try:
    while count < 100:
        if not os.fork():
            time.sleep(3); os._exit(0)
        count += 1
except OSError:
    pass
print(count)"""
    assert 8 <= int(python(small, source).stdout) <= 16


def test_a_file_of_more_than_the_disk_fails(small):
    result = python(small, "open('f', 'wb').write(bytes(1 << 23))")
    assert result.status == "disk" or result.code
    assert sum(map(len, small.files().values())) <= 4 * MIB


def test_many_files_of_more_than_the_disk_fail(small):
    source = """
import os, time
for i in range(40):
    with open(f'f{i}', 'wb') as file: file.write(bytes(1 << 20))
    time.sleep(0.02)
print('all written')"""
    result = python(small, source)
    assert b"all written" not in result.stdout, result


def test_deleted_files_count(small):
    source = """
import os, time
held = []
for i in range(40):
    held.append(open(f'f{i}', 'wb', buffering=0)); os.unlink(f'f{i}'); held[-1].write(bytes(1 << 20))
    time.sleep(0.02)
print('all written')"""
    assert b"all written" not in python(small, source).stdout


def test_the_number_of_files_is_bounded(small):
    source = """
import time
for i in range(2000):
    open(f'f{i}', 'w').close()
    time.sleep(0.001)
print('all made')"""
    assert b"all made" not in python(small, source).stdout


def test_children_of_a_killed_command_leave_nothing(small):
    small.run(["bash", "-c", "for i in 1 2 3 4; do (trap '' TERM; sleep 60) & done; kill -9 $$"])
    counted = python(small, "import os\nprint(sum(os.fork() == 0 and os._exit(0) or 1 for _ in range(8)))")
    assert counted.stdout == b"8\n"

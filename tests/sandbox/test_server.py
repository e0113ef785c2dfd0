import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import pytest

from ling_jax.sandbox import Limits, Sandbox, SandboxError
from tests.helpers.boxes import TIERS, eventually, needs, processes_with, python

ROOT = Path(__file__).parents[2]
CLIENT = """
import os, sys, threading
from ling_jax.sandbox import Limits, Sandbox
sandbox = Sandbox(sys.argv[1], allow_unsafe=True)
threading.Thread(target=sandbox.run, args=(["bash", "-c", "setsid sleep 600.{0} & sleep 600.{0}"],), daemon=True,
    kwargs={"limits": Limits(seconds=600)}).start()
if sys.argv[2] == "fork" and not os.fork():
    import time
    time.sleep(600)
print(sandbox._server.pid, flush=True)
sys.stdin.read()
"""


def leftovers(server: int) -> set[str]:
    """Temporary folders and control groups of a server."""
    temporary = Path(tempfile.gettempdir()).glob(f"ling-sandbox-{server}-*")
    groups = (folder for folder, _, _ in os.walk("/sys/fs/cgroup") if f"ling-sandbox-{server}" in folder)
    return {*map(str, temporary), *groups}


@pytest.mark.parametrize("tier", (*TIERS, "T0"))
@pytest.mark.parametrize("way", ("plain", "fork"))
def test_all_ends_with_a_killed_client(tier, way):
    if tier != "T0":
        needs(tier)
    mark = uuid.uuid4().int % 10**9
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT.replace("{0}", str(mark)), tier, way],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        server = int(client.stdout.readline())
        assert eventually(lambda: len(processes_with(f"sleep\x00600.{mark}")) >= 2)
        os.kill(client.pid, signal.SIGKILL)
        client.wait()
        assert eventually(lambda: not processes_with(f"sleep\x00600.{mark}"))
        assert eventually(lambda: not leftovers(server)), leftovers(server)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(client.pid, signal.SIGKILL)
        client.stdin.close()
        client.stdout.close()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGTERM))
def test_all_ends_with_a_killed_server(tier, number):
    needs(tier)
    mark, sandbox, errors = uuid.uuid4().int % 10**9, Sandbox(tier), []

    def wait_for_it():
        try:
            sandbox.run(["sleep", f"600.{mark}"], limits=Limits(seconds=600))
        except SandboxError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=wait_for_it)
    waiting.start()
    assert eventually(lambda: processes_with(f"sleep\x00600.{mark}"))
    sandbox._server.send_signal(number)
    waiting.join(10)
    assert errors == ["the spawn server is gone"]
    assert eventually(lambda: not processes_with(f"sleep\x00600.{mark}"))
    with pytest.raises(SandboxError, match="spawn server is gone"):
        sandbox.open()
    sandbox.close()


def test_ctrl_c_reaches_the_client_alone(sandbox):
    assert os.getsid(sandbox._server.pid) != os.getsid(0)


def test_commands_of_several_boxes_run_at_once(sandbox):
    def sleep():
        assert sandbox.run(["sleep", "1"]).code == 0

    begun, threads = time.monotonic(), [threading.Thread(target=sleep) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 4


def test_commands_of_one_box_wait_for_each_other(box):
    source = "import time; open('log', 'a').write('in '); time.sleep(0.2); open('log', 'a').write('out ')"
    threads = [threading.Thread(target=python, args=(box, source)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert box.read("log") == b"in out in out in out "


def test_a_fork_cannot_use_its_parents_sandbox(sandbox):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            sandbox.run(["true"])
        except SandboxError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert "belongs to the process" in said.read()
    os.waitpid(child, 0)
    assert sandbox.run(["true"]).code == 0


def test_many_runs_leave_nothing(sandbox):
    def held():
        server = f"/proc/{sandbox._server.pid}"
        children = [pid for pid in processes_with("") if f"PPid:\t{sandbox._server.pid}\n" in status(pid)]
        return (
            len(os.listdir(f"{server}/fd")),
            len(children),
            len(os.listdir("/proc/self/fd")),
            len(leftovers(sandbox._server.pid)),
        )

    hostile = ["bash", "-c", "for i in 1 2 3; do (setsid sleep 600 &); done; mkdir -p a/b/c; kill -9 $$"]
    sandbox.run(hostile)
    time.sleep(0.5)
    before = held()
    for index in range(20):
        sandbox.run(hostile if index % 5 == 0 else ["true"])
    assert eventually(lambda: held() == before), (held(), before)


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


def test_a_sandbox_closes_twice_and_leaves_no_thread():
    sandbox = Sandbox("T0", allow_unsafe=True)
    with sandbox.open() as box:
        assert box.run(["true"]).code == 0
    sandbox.close()
    sandbox.close()
    assert not sandbox._reader.is_alive() and sandbox._server.returncode is not None
    with pytest.raises(SandboxError):
        sandbox.run(["true"])

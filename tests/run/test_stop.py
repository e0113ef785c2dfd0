"""A signal in the middle of training, and a save that comes to its end whatever happens to the output."""

import signal
import subprocess
import sys

import pytest

from tests.helpers.faults import ROOT

SAVES = """
import sys, time
from ling_jax.run.stop import stop_signals

with stop_signals() as received:
    print("step", flush=True)
    while not received:
        time.sleep(0.01)
    print("saving", flush=True)
    open(sys.argv[1], "w").write("saved")
    print("saved", file=sys.stderr, flush=True)
print("ended", flush=True)
sys.exit(128 + received[0])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_run_saves_although_nobody_reads_its_output_any_more(tmp_path, number):
    """As in `run 2>&1 | tee log`, where Ctrl-C ends tee first, and in a terminal that closes."""
    command = ["env", "--default-signal=HUP", sys.executable, "-c", SAVES, tmp_path / "saved"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as program:
        assert program.stdout.readline() == "step\n"
        program.stdout.close()
        program.send_signal(number)
    assert program.returncode == 128 + number and (tmp_path / "saved").read_text() == "saved"

"""Programs that are killed or stopped in the middle go on when they are started again, and end in the same bits."""

import contextlib
import os
import random
import signal
import time

import pytest

from tests.helpers.faults import KINDS, kill_often, kinds

pytestmark = pytest.mark.slow


def test_kills_of_every_kind_change_nothing(tmp_path):
    rng, done = random.Random(0), []
    for group in kinds(tmp_path):
        for kind in group:
            assert len(kill_often(kind, tmp_path / kind.name, 2, rng)) == 2
            done.append(kind.name)
    assert tuple(done) == KINDS


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_ports_and_answers_with_a_line_and_the_same_command_goes_on(tmp_path, number):
    log, stopped = tmp_path / "log", []
    for group in kinds(tmp_path):
        for kind in group:
            if kind.name not in ("ports in", "ports out", "answers"):
                continue
            alone, output = (tmp_path / kind.name / name / kind.output for name in ("alone", "stopped"))
            for place in (alone, output):
                place.parent.mkdir(parents=True)
            kind.program.start(kind.flags(alone), log)
            assert kind.program.wait() == 0
            pid = kind.program.start(kind.flags(output), log)
            while not kind.begun(output, log):
                time.sleep(0.001)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            if kind.program.wait() != 0:  # it may have been too late
                stopped.append(kind.name)
                last = log.read_text().splitlines()[-1]
                assert last.startswith(f"{number.name}: ended; the same command continues "), last
                assert "Traceback" not in log.read_text()
                kind.program.start(kind.flags(output), log)
                assert kind.program.wait() == 0, log.read_text()
            kind.compare(alone, output)
            assert [path.name for path in output.parent.iterdir()] == [kind.output]
    assert stopped

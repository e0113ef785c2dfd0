"""What a program says that cannot begin: real processes, some without the installed packages (python -S)."""

import subprocess
import sys

from tests.helpers.faults import ROOT


def start(program, *options, **environment):
    command = [sys.executable, *options, "-m", program, "--help"]
    return subprocess.run(command, cwd=ROOT, env=environment or None, capture_output=True, text=True)


def one_line(done):
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_program_that_is_not_there_is_answered_with_the_nearest():
    line = one_line(start("launch.train"))
    assert "there is no program launch.train; did you mean launch.pretrain? (python -m launch lists them)" in line


def test_a_python_without_the_packages_is_answered_with_the_install():
    line = one_line(start("launch.pretrain", "-S"))
    assert "the packages are not installed in " in line and ". .venv/bin/activate" in line
    assert "launch.pretrain" in start("launch", "-S").stdout  # needs no packages


def test_an_install_that_was_interrupted_is_answered_with_the_install(tmp_path):
    (tmp_path / "ml_collections.py").write_text("import absl_part_that_is_missing")
    line = one_line(start("launch.pretrain", PYTHONPATH=str(tmp_path)))
    assert "are not complete (No module named 'absl_part_that_is_missing')" in line


def test_a_terminal_without_utf_8_shows_every_text():
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "TERM": "dumb"}
    for program in ("launch", "launch.doctor"):
        done = start(program, **ascii_only)
        assert done.returncode == 0 and not done.stderr and done.stdout.isascii(), done.stderr

"""docs/environments.md: the environment that it says to save, and the directories that it writes."""

import os
import re
import subprocess
import sys

from ling_jax.envs import NAMES, environment
from ling_jax.envs.harbor.dockerfile import IMAGES, KNOWN
from ling_jax.envs.harbor.export import PARTS
from ling_jax.envs.harbor.folder import MAX_DISK, MAX_MEMORY, read_tasks
from ling_jax.envs.harbor.tool_program import MAX_BYTES, MAX_LINES
from ling_jax.envs.own import ANY_DIFFICULTY
from ling_jax.sandbox.contract import IN_WORK, NAMES_OF_WORK
from tests.helpers.faults import ROOT
from tests.helpers.sandboxes import sandbox_or_skip

PAGE = ROOT / "docs" / "environments.md"
FILES = dict(re.findall(r"[Ss]ave it as\s+`(mine/\w+\.py)`:\n\n```python\n(.*?)```", PAGE.read_text(), re.S))
PYTHON = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


def test_the_environment_of_the_page_is_played(tmp_path):
    sandbox_or_skip()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "logs.py").write_text(FILES["mine/logs.py"])
    command = [sys.executable, "-m", "launch.play", "--task=mine.logs:Logs", "--solution"]
    own = os.environ | {"PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "finished after 2 turns: outcome 1"
    assert FILES["mine/logs.py"].count("\n") <= 45, "the page calls it small"


def test_the_directories_of_the_page_are_written_and_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(PYTHON[-1], {})
    found = read_tasks("results/repositories")
    assert len(found.training) + len(found.held_out) == 20


def test_the_table_has_all_environments_with_their_difficulties():
    rows = re.findall(r"^\| (`.*`) \|.*\|([^|]*)\|$", PAGE.read_text().split("## Write one")[0], re.M)
    listed = [name for names, _ in rows for name in re.findall(r"`([\w:]+)`", names)]
    assert sorted(listed) == sorted([*NAMES, "module:name"])
    for names, said in rows:
        given = re.findall(r"(\d+) to (\d+)", said)
        for name, (low, high) in zip(re.findall(r"`(\w+)`", names), given, strict=False):
            known = environment(name).DIFFICULTIES
            assert known != ANY_DIFFICULTY and (known[0], known[-1]) == (int(low), int(high)), name


def test_the_table_of_directories_has_all_environments_whose_tasks_become_one():
    text = PAGE.read_text().split("### Tasks as directories")[1].split("## Integrity")[0]
    listed = [name for names in re.findall(r"^\| (`.*?) \|", text, re.M) for name in re.findall(r"`(\w+)`", names)]
    assert sorted(listed) == sorted(PARTS)
    assert f"more than {MAX_LINES} lines" in text and MAX_BYTES == 1 << 20 and "1 MiB" in text
    left_out = {name for name in NAMES if name not in PARTS}
    assert left_out == {"questions"} and "`questions`" in text


def test_what_is_read_of_a_directory_is_what_the_page_says():
    text = " ".join(PAGE.read_text().split())
    assert f"at most {MAX_MEMORY}" in text and f"at most {MAX_DISK}" in text
    assert all(f"`{name}`" in text for name in KNOWN) and all(name in text for name in IMAGES)
    assert all(f"`/{name}`" in text for name in (*IN_WORK, *NAMES_OF_WORK, "work"))

"""Attacks of benchmarks/sandbox_attacks: each works where nothing stops it, and no tier lets one through."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.sandbox_attacks.attack import FAST, SLOW
from benchmarks.sandbox_attacks.judge import ATTACKS, run_attacks
from benchmarks.sandbox_attacks.plain import PlainSandbox
from ling_jax.sandbox import Sandbox
from tests.helpers.boxes import TIERS, needs

ROOT = Path(__file__).parents[2]
ATTACKER = 54321  # a uid that nobody has
MIN_ATTACKS = 60


def outcomes(user: str, folder: Path, *arguments: str) -> list[dict]:
    """What the attacks came to in a process of their own, of this test's user or of another."""
    as_other = user == "another user"
    python = "/usr/bin/python3" if as_other else sys.executable
    if as_other and (os.geteuid() or not os.path.exists(python)):
        pytest.skip("another user's process needs root and /usr/bin/python3")
    ids = {"user": ATTACKER, "group": ATTACKER, "extra_groups": []} if as_other else {}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    if as_other:
        shutil.chown(home, ATTACKER, ATTACKER)
        for parent in (folder, *folder.parents[:3]):
            parent.chmod(parent.stat().st_mode | 0o5)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    env = {"PYTHONPATH": ":".join((str(ROOT), *packages)), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home)}
    command = [python, "-m", "benchmarks.sandbox_attacks", *arguments]
    ended = subprocess.run(
        command, env=env | {"PATH": os.environ["PATH"]}, cwd=folder, capture_output=True, text=True, timeout=600, **ids
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def assert_contained(found: list[dict]) -> None:
    escaped = {each["name"]: (each["harms"], each["fault"], each["seen"]) for each in found if not each["contained"]}
    assert not escaped


@pytest.mark.parametrize(
    ("tier", "user"),
    [
        ("T3", "this user"),
        pytest.param("T3", "another user", marks=pytest.mark.slow),
        pytest.param("T2", "this user", marks=pytest.mark.slow),
        pytest.param("T2", "another user", marks=pytest.mark.slow),
    ],
)
def test_no_attack_leaves_its_box(tier, user, tmp_path):
    needs(tier)
    found = outcomes(user, tmp_path, tier)
    assert_contained(found)
    assert len(found) >= MIN_ATTACKS


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_no_heavy_flood_leaves_its_box(tier, tmp_path):
    needs(tier)
    assert_contained(outcomes("this user", tmp_path, tier, *(each.name for each in ATTACKS if each.speed == SLOW)))


@pytest.mark.slow
@pytest.mark.parametrize("user", ("this user", "another user"))
def test_each_attack_works_where_nothing_stops_it(user, tmp_path):
    found = outcomes(user, tmp_path, "none")
    assert not [each["name"] for each in found if each["contained"] and not each["absent"]]
    assert not [each["name"] for each in found if each["fault"]]
    assert len(found) - sum(each["absent"] for each in found) >= MIN_ATTACKS


def test_attacks_that_are_not_tried_without_a_sandbox_say_why():
    fast = [each for each in ATTACKS if each.speed == FAST]
    unproven = [each for each in fast if each.unsafe]
    assert len(fast) - len(unproven) >= 2 * MIN_ATTACKS
    assert all(len(each.unsafe) > 20 for each in unproven)
    assert all(each.tries.endswith(".") for each in ATTACKS)
    assert len({each.name for each in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("tier", TIERS)
def test_attacks_are_judged_in_the_process_that_has_the_sandbox(tier):
    needs(tier)
    some = [each for each in ATTACKS if each.name.startswith("files.reads") or "daemon" in each.name]
    with Sandbox(tier) as sandbox:
        judged = run_attacks(sandbox, some)
    assert [name for name, contained, _ in judged if not contained] == []
    assert [name for name, _, _ in judged] == [each.name for each in some]


def test_the_judge_sees_what_an_attack_has_done():
    some = (
        "files.reads_a_secret",
        "files.removes_a_host_file",
        "network.connects_to_a_path",
        "processes.kills_a_process",
    )
    judged = run_attacks(PlainSandbox(), [each for each in ATTACKS if each.name in some])
    seen = {name: text for name, contained, text in judged if not contained}
    assert set(seen) == set(some)
    assert "the secret is in stdout" in seen["files.reads_a_secret"]
    assert "files of the host" in seen["files.removes_a_host_file"]
    assert "sockets" in seen["network.connects_to_a_path"]
    assert "the victim" in seen["processes.kills_a_process"]

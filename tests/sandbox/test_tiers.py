import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ling_jax.sandbox
from ling_jax.sandbox import Sandbox, SandboxError, shared
from tests.helpers.boxes import TIERS, as_other_user, needs, reason_against

USER = """
import json, sys
from ling_jax.sandbox import Limits, Sandbox
with Sandbox(sys.argv[1]) as sandbox:
    result = sandbox.run(["bash", "-c", "cat; echo x > f; id -u >&2"], stdin=b"in")
    late = sandbox.run(["bash", "-c", "(sleep 60 &) ; sleep 60"], limits=Limits(seconds=0.3))
    bomb = sandbox.run(["bash", "-c", ":(){ :|:& };:; sleep 3"], limits=Limits(seconds=1, processes=8))
    with sandbox.open({"a": b"1"}) as box:
        box.run(["bash", "-c", "mkdir -m 300 d; echo 2 > d/b; chmod 0 a"])
        names = sorted(box.files())
    print(json.dumps([result.stdout.decode(), result.code, late.status, names, list(sandbox.lacks)]))
"""


PROVE = """
import asyncio
from ling_jax.sandbox.bare import Bare
from ling_jax.sandbox.proof import prove

tier = Bare()
try:
    asyncio.run(prove(tier))
finally:
    tier.end()
"""
ROOT = Path(ling_jax.sandbox.__file__).parents[2]


@pytest.fixture(autouse=True)
def the_server_knows_its_folder(monkeypatch):
    """T2 starts programs from the folder that the server was started with."""
    monkeypatch.setattr(sys, "argv", ["", str(Path(ling_jax.sandbox.__file__).parents[2])])


def test_a_proof_names_what_was_possible():
    """In a process of its own, whose other children a tier would take for orphans of boxes."""
    ran = subprocess.run([sys.executable, "-c", PROVE], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ran.returncode, ran.stdout
    for name in (
        "read_host_file",
        "write_host_folder",
        "connect_loopback",
        "connect_abstract",
        "signal_parent",
        "trace",
    ):
        assert name in ran.stderr


def test_no_protection_is_taken_only_when_it_is_asked_for():
    with pytest.raises(SandboxError, match="allow_unsafe"):
        Sandbox("T0")
    with Sandbox("T0", allow_unsafe=True) as sandbox:
        assert sandbox.tier == "T0" and "nothing is protected" in sandbox.lacks[0]


def test_the_best_tier_is_taken():
    best = next((tier for tier in (*TIERS, "T1") if not reason_against(tier)), "T0")
    with Sandbox(allow_unsafe=True) as sandbox:
        assert sandbox.tier == best


def test_an_unknown_tier_is_named():
    with pytest.raises(SandboxError, match="T9: there is no such tier"):
        Sandbox("T9")


@pytest.mark.parametrize("tier", TIERS)
def test_another_users_boxes_hold_as_well(tier):
    needs(tier)
    ended = as_other_user(USER, tier)
    assert not ended.returncode, ended.stderr
    out, code, late, names, lacks = json.loads(ended.stdout)
    assert (out, code, late) == ("in", 0, "timeout")
    assert "a" in names and any("polled" in lack for lack in lacks)


def test_docker_is_refused_with_what_would_help():
    why = reason_against("T1")
    assert not why or why.startswith("T1: ")


def test_errors_of_all_tiers_are_named_where_none_is_there(monkeypatch):
    def refuse(self, tier, warm):
        raise SandboxError(f"{tier}: not here")

    monkeypatch.setattr(Sandbox, "_start", refuse)
    with pytest.raises(SandboxError, match="T3: not here; T2: not here; T1: not here"):
        Sandbox()


def test_a_process_shares_one_sandbox():
    assert shared() is shared()
    assert shared().run(["true"]).code == 0


def test_a_sandbox_is_imported_without_jax():
    source = "import sys, ling_jax.sandbox; print([name for name in ('jax', 'numpy') if name in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": sys.argv[1]}
    )
    assert ended.stdout == "[]\n"

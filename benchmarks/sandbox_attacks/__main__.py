"""Makes all attacks and prints outcomes as JSON: python3 -m benchmarks.sandbox_attacks T3|T2|none [ATTACK ...].

With "none" there is no sandbox: only attacks that are safe without one are made, and those that this user can make.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.sandbox_attacks.attack import FAST, Attack
from benchmarks.sandbox_attacks.host import Host
from benchmarks.sandbox_attacks.judge import ATTACKS, judge_all
from benchmarks.sandbox_attacks.plain import PlainSandbox


def main(tier: str, *names: str) -> None:
    user = "root" if os.geteuid() == 0 else "user"
    attacks = [each for each in ATTACKS if each.name in names or (not names and each.speed == FAST)]
    with tempfile.TemporaryDirectory(prefix="attacked_") as scratch:
        tempfile.tempdir = os.environ["TMPDIR"] = scratch
        with Host(Path(scratch)) as host:
            if tier == "none":
                attacks = [each for each in attacks if works_here(each, user)]
                outcomes = judge_all(PlainSandbox(), attacks, host)
            else:
                from ling_jax.sandbox import Sandbox

                with Sandbox(tier) as sandbox:
                    outcomes = judge_all(sandbox, attacks, host)
        tempfile.tempdir = None
    print(json.dumps([{**each._asdict(), "contained": each.contained} for each in outcomes]))


def works_here(attack: Attack, user: str) -> bool:
    """Whether an attack is to succeed where nothing stops it."""
    status = Path("/proc/self/status").read_text()
    held = int(status.partition("CapEff:")[2].split()[0], 16)
    may = attack.capability is None or bool(held >> attack.capability & 1)
    return not attack.unsafe and attack.works_as in ("anyone", user) and may


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Makes attacks in a sandbox and judges each by what the host sees, the limits, the result and what the attack got."""

import dataclasses
import errno
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.sandbox_attacks import files, floods, kernel, network, processes
from benchmarks.sandbox_attacks.attack import FAST, Attack
from benchmarks.sandbox_attacks.host import Host
from benchmarks.sandbox_attacks.observe import changes, settled
from ling_jax.sandbox import Limits, Result, Sandbox, SandboxError

PYTHON = "python3"
GRACE = 2.0  # seconds past its limit after which a command has ended, on a busy machine too
ABSENT = (errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENODEV, errno.EOPNOTSUPP)
AT_ONCE = 8
ATTACKS: tuple[Attack, ...] = tuple(
    value
    for module in (files, network, processes, kernel, floods)
    for value in vars(module).values()
    if isinstance(value, Attack)
)
PROGRAMS = {
    f"benchmarks/sandbox_attacks/{path.name}": path.read_bytes()
    for path in Path(__file__).parent.glob("*.py")
    if path.stem in ("__init__", "attack", "attempt", "syscalls", "files", "network", "processes", "kernel", "floods")
} | {"benchmarks/__init__.py": b""}


class Outcome(NamedTuple):
    """Of one attack."""

    name: str
    harms: tuple[str, ...]  # what it did to the host, or what of the result is wrong; none if it was contained
    fault: str  # why it was not really tried; empty if it was
    seen: str  # what it says itself, and how it ended
    absent: bool  # whether the machine lacks what it aims at

    @property
    def contained(self) -> bool:
        return not self.harms and not self.fault


def reason_against(tier: str) -> str:
    """Why this machine does not have a tier; empty where it has."""
    try:
        Sandbox(tier, warm=0).close()
    except SandboxError as error:
        return str(error)
    return ""


def run_attacks(
    sandbox, attacks: Sequence[Attack] | None = None, host: Host | None = None
) -> list[tuple[str, bool, str]]:
    """Name, whether contained, and what was seen, of each attack (all fast ones by default), in the order given."""
    outcomes = judge_all(sandbox, attacks, host)
    return [(each.name, each.contained, "; ".join((*each.harms, each.fault, each.seen))) for each in outcomes]


def judge_all(sandbox, attacks: Sequence[Attack] | None = None, host: Host | None = None) -> list[Outcome]:
    """Outcomes of attacks; those that wait for their deadline are made at the same time."""
    if host is None:
        with Host() as host:
            return judge_all(sandbox, attacks, host)
    if attacks is None:
        attacks = [each for each in ATTACKS if each.speed == FAST]
    works_again(sandbox)
    neighbour = sandbox.open({"neighbour.txt": host.secret.encode()})
    seen = Baseline(host, settled(host, pause(sandbox)))
    judged = {}
    for group in groups(attacks, 1 if sandbox.tier == "none" else AT_ONCE):
        outcomes = judged_together(sandbox, group, seen)
        if len(group) > 1 and sandbox.tier != "none" and any(each.harms for each in outcomes):
            outcomes = [judged_together(sandbox, [each], seen)[0] for each in group]
        judged |= {each.name: each for each in outcomes}
    neighbour.close()
    return [judged[each.name] for each in attacks]


class Baseline:
    """What is seen of a host when no attack has harmed it."""

    def __init__(self, host: Host, seen: dict[str, object]):
        self.host, self.seen = host, seen


def groups(attacks: Sequence[Attack], size: int) -> list[list[Attack]]:
    """Attacks to be made at the same time: all that last until their deadline, and the others in groups of a size."""
    quick = [each for each in attacks if not each.waits]
    waiting = [each for each in attacks if each.waits]
    return [quick[start : start + size] for start in range(0, len(quick), size)] + ([waiting] if waiting else [])


def judged_together(sandbox, attacks: Sequence[Attack], seen: Baseline) -> list[Outcome]:
    """Attacks made at the same time. A change of the host is laid to all of them, and put right."""
    with ThreadPoolExecutor(len(attacks)) as pool:
        outcomes = list(pool.map(lambda attack: made(sandbox, attack, seen.host), attacks))
    changed = changes(seen.host, seen.seen, patience(sandbox))
    harms = (*works_again(sandbox), *changed)
    if changed:
        seen.host.heal()
        seen.seen = settled(seen.host, pause(sandbox))
    if sandbox.tier == "none" and len(attacks) > 1:
        return outcomes  # they have outrun their deadline or not: that alone is to count
    return [each._replace(harms=each.harms + harms) for each in outcomes]


def pause(sandbox) -> float:
    """Seconds between two looks."""
    return 0.01 if sandbox.tier == "none" else 0.2


def patience(sandbox) -> float:
    """Seconds that a sandbox may take to fill its pool and remove old boxes; without one none are needed."""
    return 0.1 if sandbox.tier == "none" else 20.0


def made(sandbox, attack: Attack, host: Host) -> Outcome:
    """Makes an attack in a box of its own and looks at the result and at what it left in the box."""
    limits = Limits(**{"seconds": 8.0, **dict(attack.limits)})
    facts = host.facts(dataclasses.asdict(limits), plain=sandbox.tier == "none")
    given = {**PROGRAMS, "host.json": json.dumps(facts).encode()}
    argv = [PYTHON, "-S", "-m", "benchmarks.sandbox_attacks.attempt", *attack.name.split("."), host.token]
    start = time.monotonic()
    try:
        box = sandbox.open(given, limits)
        try:
            result = box.run(argv, stdin=attack.stdin, env={"LING_TOKEN": host.token})
            said, fault, absent = statement(result)
            harms = [*of_result(attack, limits, result, host), *of_folder(box, attack, limits, host)]
        finally:
            box.close()
    except Exception as error:  # a sandbox has to bear all of it
        return Outcome(attack.name, (f"the sandbox raised {error!r}",), "", "", False)
    if time.monotonic() - start > limits.seconds + 2 * GRACE:
        harms.append(f"the box was closed only after {time.monotonic() - start:.1f} s")
    if said[0] == "worked":
        harms.append(f"it worked: {said[1]}")
    return Outcome(attack.name, tuple(harms), fault, f"{result.status} {result.code}: {said[1]}", absent)


def statement(result: Result) -> tuple[tuple[str, str], str, bool]:
    """What an attack says of itself, why it was not really tried, and whether the machine lacks its aim."""
    try:
        kind, seen, number = json.loads(result.stdout.rpartition(b"\n[")[2].join((b"[", b"")))
    except ValueError:
        tail = result.stderr[-300:].decode(errors="replace")
        untried = result.status == "exited" and result.code != 0 and not result.truncated and "Traceback" in tail
        return ("silent", tail), f"it failed by itself: {tail}" if untried else "", False
    return (kind, seen), f"it failed by itself: {seen}" if kind == "broken" else "", number in ABSENT


def of_result(attack: Attack, limits: Limits, result: Result, host: Host) -> list[str]:
    """What is wrong with a result."""
    harms = []
    if result.status not in attack.ends:
        harms.append(f"the status is {result.status} ({result.code}), not {' or '.join(attack.ends)}")
    if result.seconds > limits.seconds + GRACE:
        harms.append(f"it ran for {result.seconds:.1f} s of {limits.seconds:g}")
    for name, text in (("stdout", result.stdout), ("stderr", result.stderr)):
        if len(text) > limits.output_bytes:
            harms.append(f"{len(text)} bytes of {name} were kept")
        if host.secret.encode() in text:
            harms.append(f"the secret is in {name}")
    return harms


def of_folder(box, attack: Attack, limits: Limits, host: Host) -> list[str]:
    """What a host gets that reads a box's files back, and writes where an attack has put a link."""
    harms = []
    kept = box.files()
    for path in attack.left:
        try:
            kept[path] = box.read(path) or b""
            box.write({path: b"written by the host"})
        except (OSError, ValueError):
            continue
    if any(host.secret.encode() in data for data in kept.values()):
        harms.append("the secret is among the files of the box")
    if sum(map(len, kept.values())) > limits.disk_bytes + 2 * sum(map(len, PROGRAMS.values())):
        harms.append("more bytes were read back than the box may hold")
    return harms


def works_again(sandbox) -> tuple[str, ...]:
    """Whether the next command, in a new box, works."""
    try:
        result = sandbox.run([PYTHON, "-S", "-c", "print(6 * 7)"])
    except Exception as error:
        return (f"the next command raised {error!r}",)
    return () if (result.status, result.stdout) == ("exited", b"42\n") else (f"the next command gave {result}",)

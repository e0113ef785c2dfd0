"""The sandbox: attempts to escape on each tier, the start of a command, runs a second, and what 10,000 runs leave.

python -m benchmarks.sandbox --json_out=sandbox.json [--quick]
"""

import concurrent.futures
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from absl import app, flags

from benchmarks.json_out import JSON_OUT
from benchmarks.report import Claim, Figure, check_json_out, finish
from benchmarks.sandbox_attacks.judge import reason_against, run_attacks
from ling_jax.sandbox import Limits, Sandbox

QUICK = flags.DEFINE_bool("quick", False, "fewer runs: 30 starts, 200 runs for leftovers")

MIN_ESCAPES = 50
PASS = ["python3", "-I", "-S", "-c", "pass"]
CLIENTS = 4
HOSTILE = (  # with a short deadline, so that 2,000 of them end today
    ["bash", "-c", ":(){ :|:& };:; sleep 1"],
    ["bash", "-c", "for i in 1 2 3; do (setsid sleep 600 &); done; kill -9 $$"],
    ["bash", "-c", "yes & yes >&2"],
    ["python3", "-I", "-S", "-c", "held = []\nwhile True: held.append(bytearray(1 << 22))"],
    ["python3", "-I", "-S", "-c", "import os\nfor i in range(9**9): os.mkdir('d'); os.chdir('d')"],
    ["bash", "-c", "while :; do head -c 1000000 /dev/zero > $RANDOM || break; done; mkfifo p; ln -s / l; chmod 0 ."],
    ["python3", "-I", "-S", "-c", "import os, signal\nos.kill(os.getppid(), 9)\nos.kill(0, signal.SIGSTOP)"],
)
HOSTILE_LIMITS = Limits(seconds=0.3, memory_bytes=64 << 20, processes=16, disk_bytes=8 << 20, files=256)


def main(argv) -> None:
    del argv
    check_json_out(JSON_OUT.value)
    claims, figures = [escapes_claim(tier) for tier in ("T3", "T2")], []
    tier = next((tier for tier in ("T3", "T2") if not reason_against(tier)), "")
    if not tier:
        raise SystemExit(f"no tier is here: {reason_against('T3')}; {reason_against('T2')}")
    bare = sorted(seconds_of(lambda: subprocess.run([sys.executable, *PASS[1:]], check=True)) for _ in range(starts()))
    for name, warm, bar in (("cold", 0, 40), ("warm", 2, 10)):
        times = start_times(tier, warm)
        over = [1000 * (quantile(times, q) - quantile(bare, 0.5)) for q in (0.5, 0.99)]
        workload = f"{tier}, median of {len(times)} over a bare interpreter's {1000 * quantile(bare, 0.5):.1f} ms"
        claims.append(Claim(f"startup_ms.{name}", over[0], "ms", "<=", bar, workload))
        figures.append(Figure(f"startup_p99_ms.{name}", over[1], "ms", workload.replace("median", "99th percentile")))
    claims += [rate_claim(tier), leftovers_claim(tier)]
    command = "python -m benchmarks.sandbox" + (" --quick" if QUICK.value else "")
    sys.exit(finish(claims, command, JSON_OUT.value, figures=figures))


def starts() -> int:
    return 30 if QUICK.value else 200


def escapes_claim(tier: str) -> Claim:
    """All that were tried must be contained, and at least `MIN_ESCAPES`."""
    name, unit = f"escapes_contained.{tier}", "attempts"
    if why := reason_against(tier):
        return Claim(name, math.nan, unit, ">=", MIN_ESCAPES, why)
    with Sandbox(tier) as sandbox:
        outcomes = run_attacks(sandbox)
    for attack, contained, seen in outcomes:
        if not contained:
            print(f"{tier}: {attack} was not contained: {seen}", flush=True)
    contained = sum(contained for _, contained, _ in outcomes)
    workload = f"{len(outcomes)} attempts, as {'root' if os.geteuid() == 0 else 'a normal user'}"
    return Claim(name, contained, unit, ">=", max(MIN_ESCAPES, len(outcomes)), workload)


def start_times(tier: str, warm: int) -> list[float]:
    """Seconds of a command in a box of its own, sorted. The pool has time to fill between two."""
    times = []
    with Sandbox(tier, warm=warm) as sandbox:
        for _ in range(starts()):
            times.append(seconds_of(lambda: sandbox.run(PASS)))
            time.sleep(0.15 if warm else 0.0)
    return sorted(times)


def seconds_of(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def rate_claim(tier: str) -> Claim:
    """Commands in boxes of their own, from several threads."""
    count = 200 if QUICK.value else 1000
    with Sandbox(tier) as sandbox, concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        begun = time.perf_counter()
        results = list(pool.map(lambda _: sandbox.run(PASS), range(count)))
        seconds = time.perf_counter() - begun
    done = sum(result.code == 0 for result in results)
    workload = f"{tier}, {count} boxes with an interpreter each, {CLIENTS} threads, {os.cpu_count()} cores"
    return Claim("runs_per_second", done / seconds, "runs/s", ">=", 40, workload)


def leftovers_claim(tier: str) -> Claim:
    """Processes, descriptors, temporary files and groups above the baseline, after runs of which 1/5 are hostile."""
    count = 200 if QUICK.value else 10_000
    with Sandbox(tier) as sandbox, concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        server = sandbox._server.pid

        def once(index: int) -> None:
            if index % 5:
                sandbox.run(PASS)
            else:
                sandbox.run(HOSTILE[index // 5 % len(HOSTILE)], limits=HOSTILE_LIMITS)

        list(pool.map(once, range(2 * CLIENTS)))
        time.sleep(1)
        before = held(server)
        list(pool.map(once, range(count)))
        until = time.monotonic() + 20
        while (after := held(server)) != before and time.monotonic() < until:
            time.sleep(0.1)
    more = sum(max(0, now - then) for now, then in zip(after, before, strict=True))
    workload = (
        f"{tier}, {count} runs; processes, descriptors of both sides, temporary files and groups {before} -> {after}"
    )
    return Claim("leftovers", more, "things", "<=", 0, workload)


def temporary(server: int) -> int:
    """How many temporary folders and control groups a server has."""
    groups = sum(f"ling-sandbox-{server}" in folder for folder, _, _ in os.walk("/sys/fs/cgroup"))
    return groups + len(list(Path(tempfile.gettempdir()).glob(f"ling-sandbox-{server}-*/*")))


def held(server: int) -> tuple[int, ...]:
    """Processes below the server, descriptors of the server and of this process, and temporary things."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_bytes().rpartition(b")")[2].split()[1])
        except OSError:
            continue
    below, ahead = 0, [server]
    while ahead:
        parent = ahead.pop()
        children = [pid for pid, above in parents.items() if above == parent]
        below += len(children)
        ahead += children
    return below, len(os.listdir(f"/proc/{server}/fd")), len(os.listdir("/proc/self/fd")), temporary(server)


if __name__ == "__main__":
    app.run(main)

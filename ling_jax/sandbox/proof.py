"""The proof of a tier: forbidden things are tried in a box of it, and all must fail."""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

from ling_jax.sandbox import probes
from ling_jax.sandbox.boxes import BoxProcess
from ling_jax.sandbox.contract import MIB, Limits, SandboxError

LIMITS = Limits(seconds=20, memory_bytes=48 * MIB, processes=8, disk_bytes=4 * MIB, files=16)
NUM_PROBES, SOURCE = len(probes.PROBES), Path(probes.__file__).read_text(encoding="utf-8")


async def prove(tier) -> None:
    """Raises SandboxError with what was possible in a box of the tier, or why that could not be tried."""
    box = await BoxProcess.start(tier)
    try:
        box.limit(LIMITS)
        with tempfile.TemporaryDirectory(prefix="ling-sandbox-proof-") as folder:
            result = await run_probes(box, Path(folder))
        came = dict(json.loads(line) for line in result["out"].splitlines())
        if result["status"] == "memory":
            came.setdefault("over_memory", "denied")
        if len(came) < NUM_PROBES:
            last = (result["err"].decode("utf-8", "replace").splitlines() or [""])[-1]
            raise SandboxError(f"{tier.name}: the proof could not run ({result['status']}, {last})")
        possible = [f"{name} ({what})" for name, what in came.items() if what != "denied"]
        if possible:
            raise SandboxError(f"{tier.name}: code in a box could do what it must not: {', '.join(possible)}")
    finally:
        await box.close()


async def run_probes(box: BoxProcess, folder: Path) -> dict:
    """Runs the probes with targets that are there: a readable file, a writable folder, listening sockets."""
    os.chmod(folder, 0o777)
    (folder / "file").write_text("host")
    with socket.socket() as loopback, socket.socket(socket.AF_UNIX) as abstract:
        loopback.bind(("127.0.0.1", 0))
        loopback.listen()
        name = f"ling-sandbox-proof-{os.getpid()}"
        if sys.platform == "linux":
            abstract.bind(f"\0{name}")
            abstract.listen()
        config = {
            "host_file": str(folder / "file"),
            "host_folder": str(folder),
            "port": loopback.getsockname()[1],
            "abstract": name,
            "server": os.getpid(),
            "memory_bytes": LIMITS.memory_bytes,
            "disk_bytes": LIMITS.disk_bytes,
            "processes": LIMITS.processes,
        }
        command = ["python3", "-I", "-S", "-c", SOURCE, json.dumps(config)]
        return await box.run(command, b"", None, {})

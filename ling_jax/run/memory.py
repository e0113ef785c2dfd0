"""Memory of a run, for its metrics: a leak shows as growth long before the process runs out of memory."""

from pathlib import Path

import jax


class MemoryUse:
    """Memory of the process and of its fullest device in GB, and its growth since the first measurement."""

    def __init__(self) -> None:
        self._first: dict[str, float] = {}

    def measure(self) -> dict[str, float]:
        """{"host_memory_gb", "host_memory_growth_gb"} of this process's resident memory, and the same two with "device"
        for its fullest device, where the backend has statistics. It does not wait for a device."""
        found = {"host": _resident_bytes(), "device": _device_bytes()}
        found = {name: size / 1e9 for name, size in found.items() if size is not None}
        self._first = found | self._first
        sizes = {f"{name}_memory_gb": round(size, 4) for name, size in found.items()}
        return sizes | {f"{name}_memory_growth_gb": round(size - self._first[name], 4) for name, size in found.items()}


def _resident_bytes() -> int | None:
    """Resident memory of this process; None where the system has no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = (line.split() for line in status.read_text().splitlines())
    return next((1024 * int(words[1]) for words in lines if words[0] == "VmRSS:"), None)


def _device_bytes() -> int | None:
    """Memory in use on the fullest device; None on backends without statistics, such as the CPU."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((found["bytes_in_use"] for found in stats if "bytes_in_use" in found), default=None)

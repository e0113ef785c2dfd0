"""What a process holds, and how much more it has become."""

import numpy as np

from ling_jax.run import memory
from ling_jax.run.memory import MemoryUse


def test_a_leak_shows_as_growth():
    use = MemoryUse()
    first = use.measure()
    assert first["host_memory_growth_gb"] == 0 and 0.05 < first["host_memory_gb"] < 100
    leak = np.ones(200_000_000, np.uint8)
    then = use.measure()
    assert 0.19 < then["host_memory_growth_gb"] < 0.3
    assert then["host_memory_gb"] - first["host_memory_gb"] > 0.19 and leak[0]


class Device:
    def __init__(self, *sizes):
        self.sizes = iter(sizes)

    def memory_stats(self):
        return {"bytes_in_use": next(self.sizes)}


def test_the_fullest_device_is_told_where_the_backend_knows_it(monkeypatch):
    assert not any("device" in name for name in MemoryUse().measure())  # a CPU does not
    devices = [Device(10**9, 10**9), Device(3 * 10**9, 5 * 10**9)]
    monkeypatch.setattr(memory.jax, "local_devices", lambda: devices)
    use = MemoryUse()
    assert use.measure()["device_memory_gb"] == 3
    assert use.measure()["device_memory_growth_gb"] == 2

"""The peaks of accelerators, from data sheets; everything that compares a speed with a roof reads them here."""

from typing import NamedTuple

import jax


class Chip(NamedTuple):
    """The peaks of one device: a chip, or on v7x one of the two cores with half of each."""

    topology: str  # the smallest one, whose programs stand for this chip's
    kinds: tuple[str, ...]  # how `jax.Device.device_kind` begins
    flops: float  # dense bfloat16, per second
    hbm_bytes: float
    hbm_bytes_per_second: float
    link_bytes_per_second: float  # into the device, over all links of the slice's interconnect
    network_bytes_per_second: float  # its share of the host's network between slices
    hertz: float
    matrix_units: int  # per core
    rows_per_cycle: int  # of a matrix unit

    @property
    def bytes_per_cycle(self) -> float:
        """HBM bytes."""
        return self.hbm_bytes_per_second / self.hertz

    @property
    def flops_per_cycle(self) -> float:
        """Dense bfloat16."""
        return self.flops / self.hertz

    @property
    def version(self) -> str:
        """How the names of the chip's topologies begin."""
        return self.topology.partition(":")[0]


# Google Cloud's pages of each version, "System architecture". Networks between slices: v5e's page, 200 Gbit/s a host of
# four chips for v5p, and our assumption of 100 Gbit/s a chip for the others.
CHIPS = {
    "v5e": Chip("v5e:2x2", ("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 819e9, 200e9, 25e9 / 8, 1.5e9, 4, 1),
    "v5p": Chip("v5p:2x2x1", ("TPU v5p", "TPU v5"), 459e12, 95e9, 2765e9, 600e9, 50e9 / 8, 1.75e9, 4, 1),
    "v6e": Chip("v6e:2x2", ("TPU v6 lite", "TPU v6e"), 918e12, 32e9, 1640e9, 448e9, 100e9 / 8, 1.75e9, 2, 2),
    "v7x": Chip("tpu7x:2x2x1", ("TPU7x",), 2307e12 / 2, 192e9 / 2, 7380e9 / 2, 1200e9 / 2, 100e9 / 2 / 8, 2.2e9, 2, 2),
}
# Dense bf16 FLOP/s of devices that nothing is compiled for ahead of time, by how their kind begins.
OTHERS = {"TPU v4": 275e12, "NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12}


def data_sheet_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 peak of a device in FLOP/s; None for a device that is in no table."""
    peaks = OTHERS | {kind: chip.flops for chip in CHIPS.values() for kind in chip.kinds}
    for kind, peak in sorted(peaks.items(), key=lambda item: -len(item[0])):
        if device.device_kind.startswith(kind):
            return peak
    return None

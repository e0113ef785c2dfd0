"""TPU topologies for ahead-of-time compilation."""

import importlib.util
import math
import re

import jax
from jax.experimental import topologies

from pallas_kernels.chips import CHIPS, Chip

EXAMPLES = "v5e:2x4, v5p:8x8x16, v6e:16x16, tpu7x:4x4x4"

# The slices of Google Cloud's pages "TPU v5p", "TPU v5e" and "TPU v6e"; v5p's 2x2x4 is of its page "Plan TPUs in GKE".
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
         "16x16x24")  # fmt: skip
SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CLOUD = {  # how an accelerator's name begins: (the chip, what its number counts of a chip, layouts)
    "v5p": ("v5p", 2, CUBES),  # TensorCores, as in names of v2, v3 and v4
    "v5litepod": ("v5e", 1, SQUARES),
    "v5e": ("v5e", 1, SQUARES),
    "v6e": ("v6e", 1, SQUARES),
}


def slice_topology(name: str) -> str:
    """The topology of a slice as clouds name it: v5p-256, which is 256 TensorCores, is `v5p:4x4x8`.

    Another name is returned as it is. Raises ValueError for a size that has no standard layout, with the nearest ones.
    """
    version, _, size = name.partition("-")
    if version not in CLOUD or not size.isdigit():
        return name
    chip, cores, layouts = CLOUD[version]
    known = {cores * math.prod(map(int, layout.split("x"))): f"{chip}:{layout}" for layout in layouts}
    if int(size) in known:
        return known[int(size)]
    near = sorted(sorted(known, key=lambda other: abs(other - int(size)))[:2])
    named = " and ".join(f"{version}-{other} ({known[other]})" for other in near)
    counted = "TensorCores, two a chip" if cores == 2 else "chips"
    raise ValueError(
        f"topology {name!r} is no slice of Google Cloud (its number counts {counted}); the nearest are {named}; "
        f"name any other shape as {known[near[-1]]}"
    )


def describe(name: str, slices: int = 1) -> tuple[list[jax.Device], Chip]:
    """(devices of `slices` slices of a topology such as `v5p:8x8x16`, the peaks of each device).

    libtpu queries its host for the TPU type. On a machine without a TPU, environment variables must answer before JAX
    starts; `launch.compile` sets them. Raises ValueError for a name that libtpu does not know and if libtpu is missing.
    """
    version, chips = re.split("[:-]", name)[0], {chip.version: chip for chip in CHIPS.values()}
    if version not in chips:
        raise ValueError(f"topology {name!r} is unknown: {version!r} is none of {', '.join(chips)}; e.g. {EXAMPLES}")
    layout = name.partition(":")[2].split("x")
    # libtpu accepts some topologies that do not exist, and aborts the process on others.
    if version in ("v5e", "v6e") and (len(layout) != 2 or any(size.isdigit() and int(size) > 16 for size in layout)):
        raise ValueError(f"topology {name!r} does not exist: {version} has two axes of 16 at the most; e.g. {EXAMPLES}")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("libtpu is missing, and it is the compiler: pip install -e '.[tpu]' (no TPU is needed)")
    options = {"num_slices": slices}
    if set(layout) == {"1"}:
        options["chips_per_host_bounds"] = [1, 1, 1]
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except Exception as error:  # libtpu and JAX raise several kinds
        raise ValueError(f"topology {name!r} does not exist ({error}); e.g. {EXAMPLES}") from None
    return list(devices), chips[version]

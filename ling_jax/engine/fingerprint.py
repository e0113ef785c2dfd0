"""On which machine and with which programs bits can be made again."""

import hashlib
import os
import platform

import jax
import jaxlib

from ling_jax.config import ModelConfig


def fingerprint(config: ModelConfig, tile: int, mesh: jax.sharding.Mesh | None = None) -> str:
    """What the bits of a result depend on beside weights, context and seed, as a short digest.

    The model, JAX, the device and its instruction set, the rows of a tile on a device, XLA's flags, and the mesh.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    parts = (config, jax.__version__, jaxlib.__version__, device.platform, device.device_kind, _instructions(), tile)
    flags = os.environ.get("XLA_FLAGS", "")
    axes = () if mesh is None else (dict(mesh.shape),)
    return hashlib.blake2b(repr((*parts, flags, *axes)).encode(), digest_size=8).hexdigest()


def _instructions() -> str:
    """The CPU's instruction set."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), platform.machine())
    except OSError:
        return platform.machine() + platform.processor()

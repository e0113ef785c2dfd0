"""On which machine and with which programs bits can be made again."""

import hashlib
import os
import platform

import jax
import jaxlib

from ling_jax.config import ModelConfig


def fingerprint(config: ModelConfig, tile: int) -> str:
    """What the bits of a result depend on beside weights, context and seed, as a short digest.

    The model, JAX, the device and its instruction set, the rows of a tile, and XLA's flags.
    """
    device = jax.devices()[0]
    parts = (config, jax.__version__, jaxlib.__version__, device.platform, device.device_kind, _instructions(), tile)
    flags = os.environ.get("XLA_FLAGS", "")
    return hashlib.blake2b(repr((*parts, flags)).encode(), digest_size=8).hexdigest()


def _instructions() -> str:
    """The CPU's instruction set."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), platform.machine())
    except OSError:
        return platform.machine() + platform.processor()

"""The ladder of tiers."""

import sys

from ling_jax.sandbox.bare import Bare
from ling_jax.sandbox.bubblewrap import Bubblewrap
from ling_jax.sandbox.contract import SandboxError
from ling_jax.sandbox.docker import Docker
from ling_jax.sandbox.landlock import Landlock
from ling_jax.sandbox.places import Tier


def make(name: str, bubblewrap: str) -> Tier:
    """The tier of this name. Raises SandboxError where this machine does not have it."""
    if name in ("T3", "T2") and sys.platform != "linux":
        raise SandboxError(f"{name} needs Linux; this is {sys.platform}")
    if name == "T3":
        return Bubblewrap(bubblewrap)
    if name == "T2":
        return Landlock()
    if name == "T1":
        return Docker()
    if name == "T0":
        return Bare()
    raise SandboxError(f"{name}: there is no such tier; there are T3, T2, T1 and T0")

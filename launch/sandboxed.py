"""The sandbox of programs whose tasks run foreign code: it starts before JAX does."""

from collections.abc import Iterable

from absl import flags

from ling_jax.envs import environment
from ling_jax.sandbox import shared

ALLOW_UNSAFE = flags.DEFINE_bool(
    "allow_unsafe_sandbox", False, "where the machine has no sandbox, run foreign code unprotected"
)


def start_sandbox(environments: Iterable[str]) -> None:
    """Starts the sandbox if one of these environments needs it, and prints its tier and what that lacks.

    Raises ValueError on an unknown environment, and SandboxError, an OSError, where the machine has no sandbox.
    """
    if any(getattr(environment(name), "SANDBOXED", False) for name in environments if name):
        sandbox = shared(allow_unsafe=ALLOW_UNSAFE.value)
        print(f"sandbox {sandbox.tier}{''.join(f'; {lack}' for lack in sandbox.lacks)}", flush=True)

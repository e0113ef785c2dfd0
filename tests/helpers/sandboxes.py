"""The sandbox of this process, for tests of what stands above it."""

import pytest

from ling_jax.sandbox import Sandbox, SandboxError, shared


def sandbox_or_skip(tier: str | None = None) -> Sandbox:
    """The shared one; a test is skipped where the machine has none, or one of another tier."""
    try:
        sandbox = shared()
    except SandboxError as error:
        pytest.skip(f"no sandbox: {error}")
    if tier not in (None, sandbox.tier):
        pytest.skip(f"the sandbox is {sandbox.tier}, not {tier}")
    return sandbox

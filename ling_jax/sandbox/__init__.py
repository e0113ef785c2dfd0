"""Runs foreign code apart from the machine: commands in a folder of their own, with limits (docs/environments.md)."""

from ling_jax.sandbox.client import Box as Box
from ling_jax.sandbox.client import Sandbox as Sandbox
from ling_jax.sandbox.client import shared as shared
from ling_jax.sandbox.contract import Limits as Limits
from ling_jax.sandbox.contract import Result as Result
from ling_jax.sandbox.contract import SandboxError as SandboxError

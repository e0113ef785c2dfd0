"""Coding: functions to write and repositories to mend, judged by what runs in a sandbox."""

from ling_jax.envs.coding import functions as functions
from ling_jax.envs.coding import repositories as repositories

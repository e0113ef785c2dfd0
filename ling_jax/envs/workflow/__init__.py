"""Pipelines over files: steps that each write a file, judged one by one."""

from ling_jax.envs.workflow import environment as environment

"""Reasoning in one turn, with an answer that a program checks, in few kinds of characters: for models of any size."""

from ling_jax.envs.reasoning import digit_sums as digit_sums
from ling_jax.envs.reasoning import ordering as ordering
from ling_jax.envs.reasoning import running_sums as running_sums

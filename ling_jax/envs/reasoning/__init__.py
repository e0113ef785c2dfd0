"""Reasoning in one turn, with an answer that a program checks: puzzles of few characters, and one's own data."""

from ling_jax.envs.reasoning import digit_sums as digit_sums
from ling_jax.envs.reasoning import grid as grid
from ling_jax.envs.reasoning import knights as knights
from ling_jax.envs.reasoning import needle as needle
from ling_jax.envs.reasoning import ordering as ordering
from ling_jax.envs.reasoning import questions as questions
from ling_jax.envs.reasoning import running_sums as running_sums
from ling_jax.envs.reasoning import scheduling as scheduling

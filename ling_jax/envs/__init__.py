"""Environments: seeded tasks, what happens when a policy acts, and what it is worth."""

from ling_jax.envs import reasoning, tools
from ling_jax.envs.base import HELD_OUT_SEEDS as HELD_OUT_SEEDS
from ling_jax.envs.base import Action as Action
from ling_jax.envs.base import Environment as Environment
from ling_jax.envs.base import InfraError as InfraError
from ling_jax.envs.base import Session as Session
from ling_jax.envs.base import StepResult as StepResult
from ling_jax.envs.base import Task as Task
from ling_jax.envs.base import is_held_out as is_held_out
from ling_jax.envs.base import parse_action as parse_action
from ling_jax.envs.pure import PureSession as PureSession

ENVIRONMENTS: dict[str, Environment] = {
    "running_sums": reasoning.running_sums,
    "digit_sums": reasoning.digit_sums,
    "ordering": reasoning.ordering,
    "questions": reasoning.questions,
    "needle": reasoning.needle,
    "tools": tools.environment,
    "lookup": tools.lookup,
}

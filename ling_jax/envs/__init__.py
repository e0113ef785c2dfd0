"""Environments: seeded tasks, what happens when a policy acts, and what it is worth."""

from ling_jax.envs.base import HELD_OUT_SEEDS as HELD_OUT_SEEDS
from ling_jax.envs.base import Action as Action
from ling_jax.envs.base import Environment as Environment
from ling_jax.envs.base import InfraError as InfraError
from ling_jax.envs.base import Session as Session
from ling_jax.envs.base import StepResult as StepResult
from ling_jax.envs.base import Task as Task
from ling_jax.envs.base import draw_task as draw_task
from ling_jax.envs.base import is_held_out as is_held_out
from ling_jax.envs.base import parse_action as parse_action
from ling_jax.envs.find import NAMES as NAMES
from ling_jax.envs.find import environment as environment
from ling_jax.envs.pure import PureSession as PureSession

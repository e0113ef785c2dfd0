"""Environments by name."""

from ling_jax.envs import coding, harbor, reasoning, safety, search, tools, workflow
from ling_jax.envs.base import Environment
from ling_jax.envs.own import own_environment
from ling_jax.envs.reasoning import gym
from ling_jax.messages import nearest

_SHIPPED: dict[str, Environment] = {
    "running_sums": reasoning.running_sums,
    "digit_sums": reasoning.digit_sums,
    "ordering": reasoning.ordering,
    "questions": reasoning.questions,
    "needle": reasoning.needle,
    "knights": reasoning.knights,
    "grid": reasoning.grid,
    "scheduling": reasoning.scheduling,
    "tools": tools.environment,
    "lookup": tools.lookup,
    "functions": coding.functions,
    "repositories": coding.repositories,
    "harbor": harbor.environment,
    "toolkits": tools.toolkits,
    "service": tools.service,
    "search": search.environment,
    "safety": safety.environment,
    "workflow": workflow.environment,
}
NAMES = tuple(_SHIPPED)  # of those that are shipped


def environment(name: str) -> Environment:
    """The environment of this name: one of `NAMES`, or `module:name` for one of the user's own (`envs.own`).

    `reasoning_gym:DATASET` names a data set of that package.

    Raises ValueError for a name that is unknown, and for an environment that lacks what it needs.
    """
    if name in _SHIPPED:
        return _SHIPPED[name]
    if name.startswith(f"{gym.NAME}:"):
        return gym.gym_environment(name)
    if ":" not in name:
        known = f"{', '.join(NAMES)}, or module:name for one of your own"
        raise ValueError(f"environment is {name!r}{nearest(name, NAMES)}; expected one of {known}")
    return own_environment(name)

"""Tools with a state of their own: tasks of one to many calls, graded by the state they leave and by the calls."""

from ling_jax.envs.tools import environment as environment
from ling_jax.envs.tools import lookup as lookup
from ling_jax.envs.tools import service as service
from ling_jax.envs.tools import toolkits as toolkits

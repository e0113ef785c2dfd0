"""Tasks in which the right act is to refuse, to ask, or to leave alone what nobody asked for."""

from ling_jax.envs.safety import environment as environment

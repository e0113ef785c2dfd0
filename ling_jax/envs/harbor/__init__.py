"""Tasks in the directories of Harbor: read, judged by their own tests, and written."""

from ling_jax.envs.harbor import environment as environment

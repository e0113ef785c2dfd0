"""Search in a made-up universe of pages and apps: requests whose one answer stands in a document, behind others."""

from ling_jax.envs.search import environment as environment

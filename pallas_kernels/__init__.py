"""Pallas kernels of ling_jax, each with a reference of the same signature."""

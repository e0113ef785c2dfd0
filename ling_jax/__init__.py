"""Load, migrate, train, align, distil and RL the Ling-2.6 / Ring-2.6 models in JAX."""

__version__ = "0.2.0"

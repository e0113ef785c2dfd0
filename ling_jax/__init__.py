"""Load, migrate, train, align, distil and RL the Ling-2.6 / Ring-2.6 models in JAX.

The public surface consists of these subpackages and modules; each is imported when it is first used:

    import ling_jax

    config = ling_jax.config.model_config("tiny-2.6")
    params = ling_jax.model.init(jax.random.key(0), config)
    logits = ling_jax.model.forward(params, tokens, config).logits
"""

import importlib
from types import ModuleType

__version__ = "0.2.0"

SUBMODULES = (
    "align", "chat", "checkpoint", "compile", "config", "data", "distributed", "engine", "envs", "evaluate", "migrate",
    "model", "objectives", "parallel", "rewards", "rl", "run", "sandbox", "serve", "spec", "train",
)  # fmt: skip
__all__ = ["__version__", *SUBMODULES]


def __getattr__(name: str) -> ModuleType:
    """Imports a subpackage when it is first used (PEP 562), so that `import ling_jax` itself is fast."""
    if name in SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(SUBMODULES)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *SUBMODULES})

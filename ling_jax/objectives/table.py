"""The table of objectives, and the checks of their options."""

import inspect
from collections.abc import Mapping
from typing import Any

from ling_jax.objectives.grpo import GRPO
from ling_jax.objectives.gspo import GSPO
from ling_jax.objectives.icepop import ICEPOP
from ling_jax.objectives.kpop import KPOP
from ling_jax.objectives.lpo import LPO
from ling_jax.objectives.objective import Objective
from ling_jax.objectives.reverse_kl import REVERSE_KL
from ling_jax.objectives.tis import TIS

OBJECTIVES: dict[str, Objective] = {
    "grpo": GRPO,
    "gspo": GSPO,
    "lpo": LPO,
    "icepop": ICEPOP,
    "kpop": KPOP,
    "tis": TIS,
    "reverse_kl": REVERSE_KL,
}
# Keywords that are arrays, not settings.
PER_TOKEN = {"sentence_ids", "answer_ids", "entropies", "teacher_logps", "weights"}


def settings_of(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All keywords of an objective's loss that are no arrays: `options`, and the defaults of the others.

    Raises ValueError for an unknown objective or option, an option of a wrong value, and a missing one without default.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective is {name!r}; expected one of {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    defaults = {key: default for key, default in objective.keywords.items() if key not in PER_TOKEN}
    for option in options.keys() - defaults.keys():
        raise ValueError(f"{name} has no option {option!r}; expected some of {', '.join(defaults)}")
    settings = defaults | dict(options)
    for option, value in settings.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"{name}: {option} is missing; it has no default")
        check = objective.options.get(option)
        if check and not check.holds(value):
            raise ValueError(f"{name}: {option} is {value!r}; expected {check.expected}")
    return settings


def effective_objective(name: str, **options: Any) -> str:
    """The formula that an objective maximises with these keyword options: aggregation, ratios, policies and mask.

    Defaults of the objective's loss fill the missing options. Raises ValueError as `settings_of`.
    """
    settings = settings_of(name, options)
    return f"{name}: {OBJECTIVES[name].description(**settings)}"

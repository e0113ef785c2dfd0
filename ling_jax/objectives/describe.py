"""A one-line description of an objective, printed at the start of a run."""

import inspect
from typing import Any

from ling_jax.objectives.grpo import grpo_loss
from ling_jax.objectives.gspo import gspo_loss
from ling_jax.objectives.icepop import icepop_loss
from ling_jax.objectives.kpop import kpop_loss
from ling_jax.objectives.lpo import lpo_loss
from ling_jax.objectives.tis import tis_loss

LOSSES = {
    "grpo": grpo_loss,
    "gspo": gspo_loss,
    "lpo": lpo_loss,
    "icepop": icepop_loss,
    "kpop": kpop_loss,
    "tis": tis_loss,
}
PER_TOKEN = {"sentence_ids", "entropies"}  # arguments that are arrays, not settings
MEAN = "mean_i 1/|y_i| sum_t"


def effective_objective(name: str, **options: Any) -> str:
    """The formula that an objective maximises with these keyword options: aggregation, ratios, policies and mask.

    Defaults of the objective's function fill the missing options. Raises ValueError for an unknown objective or option
    and for a missing option without default.
    """
    if name not in LOSSES:
        raise ValueError(f"objective is {name!r}; expected one of {', '.join(LOSSES)}")
    settings = _settings(name, options)
    return f"{name}: {LINES[name](**settings)}"


def _settings(name: str, options):
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in PER_TOKEN}
    for option in options.keys() - defaults.keys():
        raise ValueError(f"{name} has no option {option!r}; expected some of {', '.join(defaults)}")
    settings = defaults | options
    for option, value in settings.items():
        if value is inspect.Parameter.empty:
            raise ValueError(f"{name}: {option} is missing; it has no default")
    return settings


def _clipped(low, high, *, ratio="r") -> str:
    bounds = f"1±{low}" if low == high else f"1-{low}, 1+{high}"
    return f"min({ratio} A, clip({ratio}, {bounds}) A)"


def _grpo(*, clip_low, clip_high, aggregate) -> str:
    mean = MEAN if aggregate == "seq_mean" else "1/sum_i |y_i| sum_i sum_t"
    return f"{mean} {_clipped(clip_low, clip_high)}; r = policy/old, no mask"


def _gspo(*, clip_low, clip_high) -> str:
    terms = _clipped(clip_low, clip_high, ratio="s_i")
    return f"mean_i {terms}; s_i = exp(mean_t log(policy/old)), no mask"


def _lpo(*, group_size, clip) -> str:
    mean = f"mean over groups of {group_size} rows of 1/sum_i |y_i| sum_i sum_k |s_ik|"
    return f"{mean} {_clipped(clip, clip)}; r = exp(mean over sentence s_ik of log(policy/old)), no mask"


def _icepop(*, alpha, beta, clip) -> str:
    policies = "r = policy/old, k = old/behaviour"
    return f"{MEAN} M*{_clipped(clip, clip)}; {policies}, M = k if {alpha} <= k <= {beta} else 0"


def _kpop(*, phi, symmetric, kappa, kappa_cap, clip) -> str:
    weight = "old/behaviour" if kappa == "ratio" else "1"
    weight = weight if kappa_cap is None else f"min({weight}, {kappa_cap})"
    mask = f"D(old||behaviour) <= {phi}" + (f" and D(behaviour||old) <= {phi}" if symmetric else "")
    return f"{MEAN} M*kappa*{_clipped(clip, clip)}; r = policy/old, kappa = {weight}, M = {mask}"


def _tis(*, cap, clip) -> str:
    return f"{MEAN} w*{_clipped(clip, clip)}; r = policy/old, w = min(old/behaviour, {cap}), no mask"


LINES = {"grpo": _grpo, "gspo": _gspo, "lpo": _lpo, "icepop": _icepop, "kpop": _kpop, "tis": _tis}

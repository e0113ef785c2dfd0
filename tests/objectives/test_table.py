import inspect

import pytest

from ling_jax.objectives import OBJECTIVES, effective_objective, settings_of
from ling_jax.objectives.table import PER_TOKEN

IGNORES = "does not look at the policy that drew a token"
REQUIRED = {"lpo": {"group_size": 8}}
OTHER_VALUES = {"aggregate": "token_mean", "kappa": "one", "symmetric": False}  # a number otherwise


def test_the_documented_examples():
    assert effective_objective("kpop") == (
        "kpop: mean_i 1/|y_i| sum_t M*kappa*min(r A, clip(r, 1±0.2) A); r = policy/old, kappa = old/behaviour, "
        "M = D(old||behaviour) <= 0.1 and D(behaviour||old) <= 0.1"
    )
    assert effective_objective("grpo", clip_high=0.28, aggregate="token_mean") == (
        "grpo: 1/sum_i |y_i| sum_i sum_t min(r A, clip(r, 1-0.2, 1+0.28) A); r = policy/old, no mask"
    )
    line = effective_objective("kpop", phi=2, symmetric=False, kappa_cap=5)
    assert line.endswith("kappa = min(old/behaviour, 5), M = D(old||behaviour) <= 2")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_record_names_the_options_of_its_loss(name):
    """All keywords with a default that are no arrays, and its functions take them all."""
    record = OBJECTIVES[name]
    defaults = {key: default for key, default in record.keywords.items() if default is not inspect.Parameter.empty}
    assert record.options.keys() == defaults.keys() - PER_TOKEN
    assert all(check.holds(defaults[option]) for option, check in record.options.items())
    settings = settings_of(name, REQUIRED.get(name, {}))
    assert record.normaliser(**settings) in ("rows", "groups", "tokens")
    assert record.stale_flaw(**settings) == ("" if name in ("icepop", "kpop", "tis", "reverse_kl") else IGNORES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_option_shows(name):
    usual = REQUIRED.get(name, {})
    options = inspect.signature(OBJECTIVES[name].description).parameters
    lines = [effective_objective(name, **usual)]
    lines += [effective_objective(name, **(usual | {option: OTHER_VALUES.get(option, 0.125)})) for option in options]
    assert len(set(lines)) == len(options) + 1
    assert all(line.startswith(f"{name}: ") and "\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ppo", {}, "objective is 'ppo'; expected one of grpo, gspo, lpo, icepop, kpop, tis, reverse_kl"),
        ("kpop", {"ph": 1}, "kpop has no option 'ph'; expected some of phi, symmetric"),
        ("lpo", {}, "lpo: group_size is missing"),
        ("kpop", {"phi": -0.1}, "kpop: phi is -0.1; expected a positive number"),
        ("kpop", {"phi": float("nan")}, "kpop: phi is nan; expected a positive number"),
        ("tis", {"cap": True}, "tis: cap is True; expected a positive number"),
        ("kpop", {"kappa_cap": 0}, "kpop: kappa_cap is 0; expected a positive number or None"),
        ("kpop", {"symmetric": "no"}, "kpop: symmetric is 'no'; expected True or False"),
        ("kpop", {"kappa": "two"}, "kpop: kappa is 'two'; expected one of ratio, one"),
        ("grpo", {"aggregate": "mean"}, "grpo: aggregate is 'mean'; expected one of seq_mean, token_mean"),
    ],
)
def test_bad_input_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        effective_objective(name, **options)

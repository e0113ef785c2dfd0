import inspect

import pytest

from ling_jax.objectives import describe, effective_objective

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


@pytest.mark.parametrize("name", describe.LOSSES)
def test_every_option_shows(name):
    usual = REQUIRED.get(name, {})
    options = inspect.signature(describe.LINES[name]).parameters
    lines = [effective_objective(name, **usual)]
    lines += [effective_objective(name, **(usual | {option: OTHER_VALUES.get(option, 0.125)})) for option in options]
    assert len(set(lines)) == len(options) + 1
    assert all(line.startswith(f"{name}: ") and "\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ppo", {}, "objective is 'ppo'; expected one of grpo, gspo, lpo, icepop, kpop, tis"),
        ("kpop", {"ph": 1}, "kpop has no option 'ph'; expected some of phi, symmetric"),
        ("lpo", {}, "lpo: group_size is missing"),
    ],
)
def test_bad_input_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        effective_objective(name, **options)

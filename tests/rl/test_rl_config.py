"""What cannot run, or would not do what it says, is refused before anything is loaded."""

import dataclasses

import pytest

from ling_jax.align.rewards import named_reward
from ling_jax.config_dicts import differences
from ling_jax.envs.sources import TaskSource
from ling_jax.objectives import OBJECTIVES
from ling_jax.rl.config import RESUMABLE, ObjectiveConfig, ObjectiveOptions, RLConfig, objective_settings
from ling_jax.rl.judge_config import JudgeConfig, Rubric
from ling_jax.train.config import from_dict, to_config_dict
from tests.helpers.rl_run import small_config


def changed(**parts) -> RLConfig:
    """The small config with fields of its parts replaced: `changed(rollout=dict(slots=0))`."""
    config, fields = small_config("start"), {}
    for name, value in parts.items():
        fields[name] = dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
    return dataclasses.replace(config, **fields)


def objective(name: str, *, allow_uncorrected=False, calibrate_phi=0.0, **options) -> ObjectiveConfig:
    """The objective `name` with these options."""
    more = dict(allow_uncorrected=allow_uncorrected, calibrate_phi=calibrate_phi)
    return ObjectiveConfig(name=name, options=ObjectiveOptions(**options), **more)


SYNCHRONOUS = dict(token_budget=0, max_staleness=0, max_retention=0)
REFUSED = {
    "group of one": (dict(rollout=dict(group_size=1)), "group_size is 1; it must be at least 2: an answer's worth"),
    "no staleness with partial rollouts": (
        dict(rollout=dict(max_staleness=0, max_retention=2)),
        "max_staleness is 0 and max_retention 2 keeps partial rollouts.*none could be trained on; set max_staleness",
    ),
    "no budget with partial rollouts": (dict(rollout=dict(token_budget=0)), "without a budget nothing is ever paused"),
    "unbounded weights": (
        dict(objective=objective("tis", cap=float("inf"))),
        "tis with .* has no bound on its importance weights.*take kpop.*set objective.allow_uncorrected",
    ),
    "unbounded KPop": (
        dict(objective=objective("kpop", phi=float("inf"))),
        "kpop with .* has no bound on its importance weights",
    ),
    "stale answers without a correction": (
        dict(objective=ObjectiveConfig(name="grpo")),
        "grpo with {.*} does not look at the policy that drew.*staleness 4.*take kpop, icepop or tis .*set objective",
    ),
    "unknown choice": (dict(objective=objective("kpop", kappa="two")), "kappa is 'two'"),
    "unknown aggregate": (
        dict(objective=objective("grpo", aggregate="mean"), rollout=SYNCHRONOUS),
        "aggregate is 'mean'",
    ),
    "no number": (dict(objective=objective("kpop", clip="0.2")), "clip is '0.2'; expected a positive"),
    "NaN": (dict(objective=objective("kpop", phi=float("nan"))), "phi is nan; expected a positive"),
    "negative bound": (
        dict(objective=objective("tis", cap=-1.0)),
        "cap is -1.0; expected a positive number .--config.objective.options.NAME",
    ),
    "no flag": (
        dict(objective=objective("kpop", symmetric="no")),
        "symmetric is 'no'; expected True or False",
    ),
    "a penalty that rewards distance": (dict(objective=dict(reference_kl=-0.1)), "reference_kl is -0.1; it must be"),
    "a mask of all tokens": (dict(objective=dict(calibrate_phi=1.0)), "calibrate_phi is 1.0; it must be .* below 1"),
    "phi of an objective without": (
        dict(objective=ObjectiveConfig(name="tis", calibrate_phi=0.1)),
        "calibrate_phi is 0.1, and tis has no phi: set it to 0, or objective.name to 'kpop'",
    ),
    "two values of phi": (
        dict(objective=objective("kpop", phi=0.5, calibrate_phi=0.1)),
        "calibrate_phi is 0.1 and objective.options.phi 0.5: the first chooses the second",
    ),
    "endless rate": (
        dict(optimizer=dict(peak_lr=float("inf"))),
        "peak_lr is inf; it must be positive and finite",
    ),
    "momentum of 1": (dict(optimizer=dict(b1=1.0)), "optimizer.b1 is 1.0; it must be at least 0 and below 1"),
    "unknown schedule": (dict(optimizer=dict(schedule="linear")), "schedule is 'linear'; it must be 'wsm' or 'cosine'"),
    "unknown objective": (dict(objective=ObjectiveConfig(name="ppo")), "objective is 'ppo'; expected one of grpo"),
    "an option of another objective": (
        dict(objective=objective("kpop", alpha=1.0)),
        "kpop has no option 'alpha'; expected some of phi.*--config.objective.options.NAME=VALUE sets an option",
    ),
    "impossible difficulty": (
        dict(tasks=(TaskSource(environment="running_sums", difficulties=(2, 99), count=1),)),
        r"tasks\[0\].difficulties is \[2, 99\]; running_sums has 1 to 15",
    ),
    "unknown environment": (
        dict(tasks=(TaskSource(environment="running_sum", difficulties=(2,), count=1),)),
        "'running_sum', did you mean 'running_sums'",
    ),
    "no tasks": (dict(tasks=()), "tasks is \\(\\); it must name at least one source"),
    "held-out tasks": (
        dict(tasks=(TaskSource(environment="running_sums", difficulties=(2,), count=2**31 + 1),)),
        "make held-out tasks",
    ),
    "unknown effort": (dict(efforts=("high", "higher")), "efforts has 'higher', did you mean 'high'"),
    "efforts that do not share out": (
        dict(efforts=("high", "xhigh"), rollout=dict(group_size=5)),
        "group_size is 5; the 2 efforts share it out evenly",
    ),
    "efforts of one answer each": (dict(efforts=("high", "xhigh"), rollout=dict(group_size=2)), "two answers or more"),
    "no start": (dict(start_from=""), "start_from is ''; it must name the workdir"),
    "unknown count": (dict(rollout=dict(count="complete")), "count is 'complete', did you mean 'completed'"),
    "more parts than answers": (
        dict(train=dict(microbatches=5)),
        r"train.microbatches is 5, and an optimisation step has 4 answers \(prompts_per_step x group_size",
    ),
    "steps that do not divide a batch": (
        dict(train=dict(updates_per_batch=3), rollout=dict(prompts_per_step=4)),
        "train.updates_per_batch 3 does not divide rollout.prompts_per_step 4",
    ),
    "no steps": (dict(train=dict(steps=0)), "train.steps is 0; it must be positive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused(name):
    parts, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        changed(**parts)


def test_the_options_of_all_objectives_are_fields_of_the_config():
    fields = {field.name for field in dataclasses.fields(ObjectiveOptions)}
    assert fields == {option for record in OBJECTIVES.values() for option in record.options}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_config_without_options_has_those_of_its_objective(name):
    """So that a flag can name another objective, and then set its options."""
    fields = to_config_dict(changed(objective=ObjectiveConfig(name="kpop"), rollout=SYNCHRONOUS))
    fields.objective.name = name
    fields.teachers = ("runs/teacher",) if name == "reverse_kl" else ()
    for option in OBJECTIVES[name].options.keys() - {"aggregate", "kappa", "symmetric"}:
        fields.objective.options[option] = 0.5
    settings = objective_settings(from_dict(RLConfig, fields.to_dict()).objective, 4)
    numbers = {option: value for option, value in settings.items() if isinstance(value, float)}
    assert numbers and set(numbers.values()) == {0.5}


def test_an_uncorrected_objective_may_be_the_experiment():
    changed(objective=objective("tis", cap=float("inf"), allow_uncorrected=True))
    changed(objective=ObjectiveConfig(name="grpo", allow_uncorrected=True))
    changed(objective=ObjectiveConfig(name="lpo"), rollout=SYNCHRONOUS)
    changed(objective=objective("tis", cap=float("inf")), rollout=SYNCHRONOUS)
    changed(objective=objective("kpop", phi=float("inf"), kappa_cap=5.0))


def test_a_config_survives_its_file_and_overrides():
    config = changed(efforts=("high", "xhigh"), objective=objective("kpop", phi=0.5))
    fields = to_config_dict(config)
    assert from_dict(RLConfig, fields.to_dict()) == config
    fields.objective.options.phi = 0.75  # as the flag --config.objective.options.phi does
    fields.objective.options.symmetric = False
    fields.rollout.slots = 8
    fields.judge.timeout, fields.judge.rubrics = 5, ({"name": "brief", "weight": 2},)
    changed_again = from_dict(RLConfig, fields.to_dict())
    assert changed_again.objective.options == ObjectiveOptions(phi=0.75, symmetric=False)
    assert changed_again.judge == JudgeConfig(timeout=5.0, rubrics=(Rubric(name="brief", weight=2.0),))
    assert changed_again.rollout.slots == 8


def test_only_what_changes_no_bit_may_differ_on_resumption():
    config = changed()
    longer = changed(train=dict(steps=9, save_every=1, keep=1, samples=0, eval_tasks=3, max_nonfinite_steps=1))
    assert not differences(config, longer, RESUMABLE)
    assert differences(config, changed(train=dict(seed=1)), RESUMABLE) == ["train.seed: 0 in the workdir, 1 now"]
    assert differences(config, changed(rollout=dict(slots=3)), RESUMABLE)


def test_an_unknown_reward_offers_the_nearest():
    with pytest.raises(ValueError, match="reward is 'evocot', did you mean 'evo_cot'"):
        named_reward("evocot")

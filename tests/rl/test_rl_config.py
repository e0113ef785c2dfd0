"""What cannot run, or would not do what it says, is refused before anything is loaded."""

import dataclasses

import pytest

from ling_jax.align.rewards import named_reward
from ling_jax.envs.sources import TaskSource
from ling_jax.rl.config import RESUMABLE, ObjectiveConfig, RLConfig
from ling_jax.train.config import differences, from_dict, to_config_dict
from tests.helpers.rl_run import small_config


def changed(**parts) -> RLConfig:
    """The small config with fields of its parts replaced: `changed(rollout=dict(slots=0))`."""
    config, fields = small_config("start"), {}
    for name, value in parts.items():
        fields[name] = dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
    return dataclasses.replace(config, **fields)


SYNCHRONOUS = dict(token_budget=0, max_staleness=0, max_retention=0)
REFUSED = {
    "group of one": (dict(rollout=dict(group_size=1)), "group_size is 1; it must be at least 2: an answer's worth"),
    "no staleness with partial rollouts": (
        dict(rollout=dict(max_staleness=0, max_retention=2)),
        "max_staleness is 0 and max_retention 2 keeps partial rollouts.*none could be trained on; set max_staleness",
    ),
    "no budget with partial rollouts": (dict(rollout=dict(token_budget=0)), "without a budget nothing is ever paused"),
    "unbounded weights": (
        dict(objective=ObjectiveConfig(name="tis", options={"cap": float("inf")})),
        "tis with .* has no bound on its importance weights.*take kpop.*set objective.allow_uncorrected",
    ),
    "unbounded KPop": (
        dict(objective=ObjectiveConfig(name="kpop", options={"phi": float("inf")})),
        "kpop with .* has no bound on its importance weights",
    ),
    "stale answers without a correction": (
        dict(objective=ObjectiveConfig(name="grpo")),
        "grpo with {} does not look at the policy that drew.*staleness 4.*take kpop, icepop or tis .*set objective",
    ),
    "unknown choice": (dict(objective=ObjectiveConfig(name="kpop", options={"kappa": "two"})), "kappa is 'two'"),
    "unknown aggregate": (
        dict(objective=ObjectiveConfig(name="grpo", options={"aggregate": "mean"}), rollout=SYNCHRONOUS),
        "aggregate is 'mean'",
    ),
    "no number": (dict(objective=ObjectiveConfig(name="kpop", options={"clip": "0.2"})), "options.clip is '0.2'; it"),
    "NaN": (dict(objective=ObjectiveConfig(name="kpop", options={"phi": float("nan")})), "options.phi is nan; it must"),
    "negative bound": (dict(objective=ObjectiveConfig(name="tis", options={"cap": -1.0})), "options.cap is -1.0; it"),
    "no flag": (
        dict(objective=ObjectiveConfig(name="kpop", options={"symmetric": "no"})),
        "symmetric is 'no'; it must",
    ),
    "two group sizes": (
        dict(objective=ObjectiveConfig(name="lpo", options={"group_size": 2}), rollout=SYNCHRONOUS),
        "options.group_size is 2; rollout.group_size, 4, is it",
    ),
    "endless rate": (
        dict(optimizer=dict(peak_lr=float("inf"))),
        "peak_lr is inf; it must be positive and finite",
    ),
    "momentum of 1": (dict(optimizer=dict(b1=1.0)), "optimizer.b1 is 1.0; it must be at least 0 and below 1"),
    "unknown schedule": (dict(optimizer=dict(schedule="linear")), "schedule is 'linear'; it must be 'wsm' or 'cosine'"),
    "unknown objective": (dict(objective=ObjectiveConfig(name="ppo")), "objective is 'ppo'; expected one of grpo"),
    "unknown option": (
        dict(objective=ObjectiveConfig(name="kpop", options={"phy": 1.0})),
        "kpop has no option 'phy'; expected some of phi",
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
    "a batch that does not divide": (
        dict(train=dict(microbatches=2)),
        "train.microbatches 2 does not divide rollout.prompts_per_step 1",
    ),
    "no steps": (dict(train=dict(steps=0)), "train.steps is 0; it must be positive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_is_refused(name):
    parts, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        changed(**parts)


def test_a_mean_over_all_tokens_is_not_taken_in_parts():
    config = changed(rollout=dict(prompts_per_step=2))
    objective = ObjectiveConfig(name="grpo", options={"aggregate": "token_mean"}, allow_uncorrected=True)
    with pytest.raises(ValueError, match="'token_mean', is no sum over microbatches"):
        dataclasses.replace(config, objective=objective, train=dataclasses.replace(config.train, microbatches=2))


def test_an_uncorrected_objective_may_be_the_experiment():
    changed(objective=ObjectiveConfig(name="tis", options={"cap": float("inf")}, allow_uncorrected=True))
    changed(objective=ObjectiveConfig(name="grpo", allow_uncorrected=True))
    changed(objective=ObjectiveConfig(name="lpo"), rollout=SYNCHRONOUS)
    changed(objective=ObjectiveConfig(name="tis", options={"cap": float("inf")}), rollout=SYNCHRONOUS)
    changed(objective=ObjectiveConfig(name="kpop", options={"phi": float("inf"), "kappa_cap": 5.0}))


def test_a_config_survives_its_file_and_overrides():
    config = changed(efforts=("high", "xhigh"), objective=ObjectiveConfig(name="kpop", options={"phi": 0.5}))
    fields = to_config_dict(config)
    assert from_dict(RLConfig, fields.to_dict()) == config
    fields.objective.options.phi = 0.75
    fields.rollout.slots = 8
    changed_again = from_dict(RLConfig, fields.to_dict())
    assert changed_again.objective.options == {"phi": 0.75} and changed_again.rollout.slots == 8


def test_only_what_changes_no_bit_may_differ_on_resumption():
    config = changed()
    longer = changed(train=dict(steps=9, save_every=1, keep=1, samples=0, eval_tasks=3, max_nonfinite_steps=1))
    assert not differences(config, longer, RESUMABLE)
    assert differences(config, changed(train=dict(seed=1)), RESUMABLE) == ["train.seed: 0 in the workdir, 1 now"]
    assert differences(config, changed(rollout=dict(slots=3)), RESUMABLE)


def test_an_unknown_reward_offers_the_nearest():
    with pytest.raises(ValueError, match="reward is 'evocot', did you mean 'evo_cot'"):
        named_reward("evocot")

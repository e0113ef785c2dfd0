"""The rewards that a config can name."""

import functools
from collections.abc import Sequence

import numpy as np
from etils import epath

from ling_jax.align.adaptive import adaptive
from ling_jax.align.agentic import agentic
from ling_jax.align.evo_cot import evo_cot
from ling_jax.align.judges import RULES, Judge, make_judge
from ling_jax.align.judges.judge import check_judged_by
from ling_jax.align.own_reward import own_reward
from ling_jax.align.preference import preference
from ling_jax.align.rubrics import rubrics_of
from ling_jax.messages import nearest
from ling_jax.rl.config import RLConfig
from ling_jax.rl.episode import Episode
from ling_jax.rl.judge_config import JudgeConfig
from ling_jax.rl.reader import Reader
from ling_jax.rl.reward import Reward, Rewards, of_each_group


def outcome(episodes: Sequence[Episode], reader: Reader) -> Rewards:
    """1 where the environment says that it is solved, else 0."""
    del reader
    solved = np.array([episode.outcome for episode in episodes])
    return Rewards(solved, {"outcome": solved})


JUDGED = ("evo_cot", "preference")  # by redundant sentences, and by rubrics


def rewards_with(judge: Judge, config: JudgeConfig) -> dict[str, Reward]:
    """All rewards by name."""
    by_sentences = functools.partial(evo_cot, judge=judge)
    by_rubrics = functools.partial(preference, judge=judge, rubrics=rubrics_of(config))
    return {
        "outcome": Reward(of_each_group(outcome), 0, 1),
        "evo_cot": Reward(by_sentences, -0.8, 1.1, accepted=judge.accept),
        "agentic": Reward(of_each_group(agentic), -2.7, 1),
        "preference": Reward(by_rubrics, -0.9, 1, accepted=judge.accept),
        "adaptive": Reward(of_each_group(adaptive), -0.1, 1.1, needs_efforts=True),
    }


REWARDS = rewards_with(RULES, JudgeConfig())


def named_reward(name: str) -> Reward:
    """A reward of this package, with rules for a judge, or `module:name` of one's own (`align.own_reward`).

    Raises ValueError, with the nearest name, for one that is unknown.
    """
    if ":" in name:
        return own_reward(name)
    if name not in REWARDS:
        raise ValueError(
            f"reward is {name!r}{nearest(name, REWARDS)}; expected one of {', '.join(REWARDS)}, or module:function for "
            "one of your own"
        )
    return REWARDS[name]


def configured_reward(config: RLConfig, workdir: epath.PathLike, *, replay: bool = False) -> Reward:
    """The reward of a run, with its judge; `replay` as in `make_judge`.

    Raises ValueError or OSError, before any work, on a reward that does not exist, and on a judge that cannot be asked
    or that the reward does not need.
    """
    name, judge = config.reward, config.judge
    named = named_reward(name)
    if judge.asks and name not in JUDGED:
        raise ValueError(
            f"judge.kind is {judge.kind!r} and reward {name!r} asks no judge: set judge.kind to 'rules', or take "
            f"{' or '.join(JUDGED)}"
        )
    if judge.rubrics and name != "preference":
        raise ValueError(f"judge.rubrics is set and reward {name!r} reads none: leave it out, or take 'preference'")
    if name == "preference":
        check_judged_by(rubrics_of(judge), judge.asks)
    return rewards_with(make_judge(judge, workdir, replay=replay), judge)[name] if name in REWARDS else named

"""The shipped configs of alignment and RL, at the size of a test."""

from pathlib import Path

from configs.align import tiny_agentic, tiny_evo_cot, tiny_on_policy, tiny_preference
from configs.rl import tiny_adaptive, tiny_grpo, tiny_kpop, tiny_questions
from ling_jax.rl.config import RLConfig
from ling_jax.train.config import from_dict

CONFIGS = {  # and a metric that only this one has
    "evo_cot": (tiny_evo_cot, "clip_fraction"),
    "preference": (tiny_preference, "reward/brief"),
    "agentic": (tiny_agentic, "reward/superfluous_calls"),
    "grpo": (tiny_grpo, "reference_kl"),
    "kpop": (tiny_kpop, "masked_fraction"),
    "questions": (tiny_questions, "reward/outcome"),
    "adaptive": (tiny_adaptive, "reward/length"),
    "on_policy": (tiny_on_policy, "reverse_kl"),
}


def shrunk(name: str, start: Path, *, steps: int, eval_tasks: int) -> RLConfig:
    """The config `name` for a few steps of groups of four answers of at most 16 tokens: one for each optimisation."""
    config = CONFIGS[name][0].get_config()
    config.start_from = str(start)
    config.teachers = (str(start),) * len(config.teachers)
    config.train.steps, config.train.microbatches, config.train.eval_tasks = steps, 1, eval_tasks
    config.rollout.slots, config.rollout.group_size = 16, 4
    config.rollout.prompts_per_step = config.train.updates_per_batch
    config.rollout.context, config.rollout.max_tokens = 184, 16
    config.rollout.token_budget = min(config.rollout.token_budget, 64)
    return from_dict(RLConfig, config.to_dict())

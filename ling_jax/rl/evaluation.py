"""What a policy does with held-out tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ling_jax.envs import Task
from ling_jax.evaluate.report import Metric, with_progress
from ling_jax.evaluate.statistics import Z95, wilson_interval
from ling_jax.rl.collector import Collector, play
from ling_jax.rl.episode import Episode, EpisodeRequest
from ling_jax.rl.trajectory import FAILED


def evaluate(collector: Collector, params, tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """What the weights do with each task, in order: `describe` of its episode.

    With a collector of temperature 0, the likeliest answers. Raises ValueError where a task does not fit the context.
    """
    collector.load(params)
    requests = [EpisodeRequest(i, i, task, seed=i) for i, task in enumerate(tasks)]
    playing = ([episode] for episode in play(collector, collector.reader.begin_all(requests)))
    episodes = sorted(with_progress(playing, "rollouts", len(tasks)), key=lambda episode: episode.id)
    return [describe(episode) for episode in episodes]


def describe(episode: Episode) -> dict[str, Any]:
    """A JSON object: the task, outcome (0 or 1), tokens, calls, rewards, status, the messages after the prompt."""
    task = episode.task
    return {
        "task": task.id,
        "environment": task.environment,
        "difficulty": task.difficulty,
        "seed": task.seed,
        "prompt": task.prompt,
        "outcome": episode.outcome,
        "tokens": episode.drawn,
        "calls": len(episode.calls),
        "rewards": dict(episode.rewards),
        "status": episode.trajectory.status,
        "messages": [{"role": m["role"], "content": m["content"]} for m in episode.reply],
    }


def summarise(records: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Of each environment: accuracy with its Wilson interval, means of tokens and rewards with normal ones.

    Episodes that failed are left out; where a limit cut one off, its environment gave no rewards.
    """
    metrics = []
    for environment in dict.fromkeys(record["environment"] for record in records):
        kept = [r for r in records if r["environment"] == environment and r["status"] not in FAILED]
        if not kept:
            continue
        solved = float(np.mean([r["outcome"] for r in kept]))
        interval = wilson_interval(solved, len(kept))
        metrics.append(Metric(f"{environment}/accuracy", solved, interval, len(kept), "tasks"))
        metrics.append(_mean(f"{environment}/tokens", [r["tokens"] for r in kept]))
        for name in sorted({name for r in kept for name in r["rewards"]} - {"outcome"}):
            rewards = [r["rewards"][name] for r in kept if name in r["rewards"]]
            metrics.append(_mean(f"{environment}/{name}", rewards))
    return metrics


def _mean(name: str, values: Sequence[float]) -> Metric:
    mean, half = np.mean(values), Z95 * np.std(values) / np.sqrt(len(values))
    return Metric(name, float(mean), (float(mean - half), float(mean + half)), len(values), "tasks")

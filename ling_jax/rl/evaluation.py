"""What a policy does with held-out tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ling_jax.envs import Task
from ling_jax.evaluate.answers import accuracy
from ling_jax.evaluate.pass_rates import pass_metrics
from ling_jax.evaluate.report import Metric, with_progress
from ling_jax.evaluate.statistics import Z95
from ling_jax.rl.collector import Collector, play
from ling_jax.rl.episode import Episode, EpisodeRequest
from ling_jax.rl.trajectory import FAILED


def evaluate(
    collector: Collector,
    params,
    tasks: Sequence[Task],
    *,
    samples: int = 1,
    seed: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """`describe` of the episodes of `play_tasks`, in their order."""
    episodes = play_tasks(collector, params, tasks, samples=samples, seed=seed, stopped=stopped)
    return [describe(episode) for episode in episodes]


def play_tasks(
    collector: Collector,
    params,
    tasks: Sequence[Task],
    *,
    samples: int = 1,
    seed: int = 0,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Episode]:
    """What the weights do with each task: `samples` episodes, next to each other, tasks in order.

    The answers have seeds of their own, from `seed` on. With a collector of temperature 0, the likeliest answers. Where
    `stopped()` says so between two pieces of decoding, only the episodes that have ended. Raises ValueError where a
    task does not fit the context.
    """
    collector.load(params)
    numbers = [(i, i // samples) for i in range(len(tasks) * samples)]
    requests = [EpisodeRequest(i, number, tasks[number], seed=seed + i) for i, number in numbers]
    playing = ([episode] for episode in play(collector, collector.reader.begin_all(requests), stopped=stopped))
    return sorted(with_progress(playing, "rollouts", len(requests)), key=lambda episode: episode.id)


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
        "answer_seed": episode.seed,
        "messages": [{"role": m["role"], "content": m["content"]} for m in episode.reply],
    }


def summarise(records: Sequence[Mapping[str, Any]], *, samples: int = 1, ks: Sequence[int] = ()) -> list[Metric]:
    """Of each environment: accuracy, pass@k and pass^k for each of `ks`, means of tokens and rewards over tasks.

    `records` hold `samples` of each task, next to each other. Intervals are over tasks: Wilson's of what is right, and
    normal ones of the means. Episodes that failed are left out, and tasks with one from pass@k and pass^k; where a
    limit cut an episode off, its environment gave no rewards.
    """
    tasks: dict[str, list[list[Mapping[str, Any]]]] = {}
    for first in range(0, len(records), samples):
        kept = [record for record in records[first : first + samples] if record["status"] not in FAILED]
        if kept:
            tasks.setdefault(records[first]["environment"], []).append(kept)
    return [
        metric._replace(name=f"{environment}/{metric.name}")
        for environment, groups in tasks.items()
        for metric in _summarise(groups, samples, ks)
    ]


def _summarise(groups: Sequence[Sequence[Mapping[str, Any]]], samples: int, ks: Sequence[int]) -> list[Metric]:
    """Metrics of the tasks of one environment; a group is the episodes of a task."""
    outcomes = [[record["outcome"] for record in group] for group in groups]
    right = [group.count(1) for group in outcomes if len(group) == samples]
    metrics = [accuracy("accuracy", outcomes, "answers"), *pass_metrics(right, samples, ks, "tasks")]
    metrics.append(_mean("tokens", [[record["tokens"] for record in group] for group in groups]))
    for name in sorted({name for group in groups for record in group for name in record["rewards"]} - {"outcome"}):
        rewards = [[record["rewards"][name] for record in group if name in record["rewards"]] for group in groups]
        metrics.append(_mean(name, [group for group in rewards if group]))
    return metrics


def _mean(name: str, groups: Sequence[Sequence[float]]) -> Metric:
    values = [np.mean(group) for group in groups]
    mean, half = np.mean(values), Z95 * np.std(values) / np.sqrt(len(values))
    return Metric(name, float(mean), (float(mean - half), float(mean + half)), len(values), "tasks")

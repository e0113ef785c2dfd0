"""Retrieval over lengths: how often a model finds a code at some depth of a text of so many tokens.

The texts are held-out ones of `envs.reasoning.needle`; lengths are counted in the model's own tokens.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ling_jax.chat.tool_calls import parse_either
from ling_jax.checkpoint.folder import Loaded
from ling_jax.engine.prompts import encode_prompts
from ling_jax.envs import HELD_OUT_SEEDS, Task
from ling_jax.envs.reasoning.answers import is_code
from ling_jax.envs.reasoning.needle import needle_task
from ling_jax.evaluate.answers import Verdict, accuracy, distinct
from ling_jax.evaluate.report import Metric

SHORTEST, LONGEST = 256, 32_768  # of the default lengths, tokens
TRIAL = 64  # sentences from which the tokens of one are estimated


class Needle(NamedTuple):
    """One task of the table."""

    length: int  # tokens that the prompt may have
    depth: float  # share of the text before the fact
    task: Task
    prompt: list[int]


def default_lengths(max_length: int, max_new_tokens: int) -> list[int]:
    """The powers of two from 256 to 32,768 that fit the context with an answer."""
    lengths = [2**i for i in range(SHORTEST.bit_length() - 1, LONGEST.bit_length())]
    return [length for length in lengths if length + max_new_tokens <= max_length]


def check_table(lengths: Sequence[int], depths: Sequence[float]) -> None:
    """Raises ValueError on lengths and depths that no table has."""
    for name, values, good, wanted in (
        ("lengths", lengths, lambda x: x >= 1, "tokens, at least 1"),
        ("depths", depths, lambda x: 0 <= x <= 1, "shares from 0 to 1"),
    ):
        for i, value in enumerate(values):
            if not good(value) or value in values[:i]:
                raise ValueError(f"--{name} has {value:g}; expected {wanted}, each once")
    if not depths:
        raise ValueError("--depths is empty; name shares of the text, such as 0,0.5,1")


def make_needles(
    model: Loaded,
    lengths: Sequence[int],
    depths: Sequence[float],
    count: int,
    *,
    max_new_tokens: int,
    seed: int = 0,
    raw: bool = False,
) -> list[Needle]:
    """`count` tasks for each length and depth, in this order; `raw` as in `encode_prompts`.

    A prompt has at most `length` tokens, of template, text and question, and no more than a few sentences less. Raises
    ValueError where no length is left, one is too short for the question, or one passes the model's context.
    """
    if not lengths:
        raise ValueError(
            f"the model's context is {model.config.max_length} tokens, too short for {SHORTEST} and an answer of "
            f"{max_new_tokens}; give --lengths"
        )
    for length in lengths:
        if length + max_new_tokens > model.config.max_length:
            raise ValueError(
                f"--lengths has {length}; with {max_new_tokens} new tokens it passes the model's context of "
                f"{model.config.max_length}"
            )

    def encode(task: Task) -> list[int]:
        (ids,) = encode_prompts(model, [(f"needle {task.seed}", {"prompt": task.prompt})], raw=raw)
        return ids

    cells = [(length, depth) for length in lengths for depth in depths for _ in range(count)]
    return [
        Needle(length, depth, *_fitted(encode, HELD_OUT_SEEDS + seed + i, length, depth))
        for i, (length, depth) in enumerate(cells)
    ]


def _fitted(encode: Callable[[Task], list[int]], seed: int, length: int, depth: float) -> tuple[Task, list[int]]:
    """(the task, its prompt) with about as many sentences as fit."""
    least = len(encode(needle_task(seed, 1, depth)))
    if least > length:
        raise ValueError(f"--lengths has {length}; the shortest prompt, of one sentence, has {least} tokens")
    each = (len(encode(needle_task(seed, TRIAL, depth))) - least) / (TRIAL - 1)
    sentences = max(1, int((length - least) / each))
    while True:
        task = needle_task(seed, sentences, depth)
        if len(prompt := encode(task)) <= length:
            return task, prompt
        sentences = max(1, sentences - math.ceil((len(prompt) - length) / each))


def needle_record(needle: Needle, number: int) -> dict[str, Any]:
    """The record of a prompt, as `answers.answer_results` takes it."""
    name = f"{needle.length}/{needle.depth:g}/{number}"
    return {"id": name, "prompt": needle.task.prompt, "answer": needle.task.hidden["answer"]}


def finds_code(text: str, record: dict[str, Any]) -> bool:
    """The verifier: `envs.reasoning.answers.is_code` of what is behind the reasoning."""
    return is_code(parse_either(text).content, record["answer"])


def needle_metrics(needles: Sequence[Needle], verdicts: Sequence[Verdict]) -> list[Metric]:
    """Accuracy of each length and of each cell, and how many of the tasks were distinct.

    `verdicts` hold the same number of samples for each needle, next to each other.
    """
    scores = _scores(needles, verdicts)
    lengths = list(dict.fromkeys(length for length, _ in scores))
    metrics = [
        accuracy(f"accuracy/{length}", [group for (n, _), groups in scores.items() if n == length for group in groups])
        for length in lengths
    ]
    metrics += [accuracy(f"accuracy/{length}/{depth:g}", groups) for (length, depth), groups in scores.items()]
    return [*metrics, distinct([needle.task.id for needle in needles])]


def heat_map(needles: Sequence[Needle], verdicts: Sequence[Verdict]) -> str:
    """The accuracies in per cent as a table of text: a row for each length, a column for each depth."""
    scores = _scores(needles, verdicts)
    lengths, depths = (list(dict.fromkeys(key[i] for key in scores)) for i in range(2))
    rows = [["tokens", *(f"depth {depth:g}" for depth in depths)]]
    for length in lengths:
        rows.append([str(length), *(f"{100 * np.mean(np.concatenate(scores[length, depth])):.0f}" for depth in depths)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _scores(needles: Sequence[Needle], verdicts: Sequence[Verdict]) -> dict[tuple[int, float], list[list[float]]]:
    """{(length, depth): the scores of the samples of each task}."""
    each = len(verdicts) // len(needles)
    cells: dict[tuple[int, float], list[list[float]]] = {}
    for i, needle in enumerate(needles):
        found = [verdict.score for verdict in verdicts[i * each : (i + 1) * each] if verdict.score is not None]
        cells.setdefault((needle.length, needle.depth), []).append(found)
    return cells

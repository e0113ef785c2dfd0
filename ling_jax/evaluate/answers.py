"""Verification of generated answers: accuracy, pass@k and pass^k."""

import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from ling_jax.chat.records import normalise_prompt
from ling_jax.checkpoint.folder import Loaded
from ling_jax.data.json_lines import field, read_objects, with_unique_ids
from ling_jax.engine import Engine, Request
from ling_jax.engine.prompts import encode_prompts
from ling_jax.engine.text import Completion, complete
from ling_jax.evaluate.pass_rates import pass_metrics
from ling_jax.evaluate.report import Metric
from ling_jax.evaluate.scoring import check_finite
from ling_jax.evaluate.statistics import effective_count, wilson_interval
from ling_jax.messages import shown
from ling_jax.rewards import gold_answer, shared_checker
from ling_jax.user_code import load_object

Verifier = Callable[[str, dict[str, Any]], bool | float]


class Verdict(NamedTuple):
    """The result of a verifier."""

    score: float | None  # 0 to 1; None: the verifier failed
    error: str  # "" without an error


def exact_match(text: str, record: dict[str, Any]) -> bool:
    """Whether the text equals the record's answer, ignoring surrounding white space."""
    return text.strip() == record["answer"].strip()


def same_answer(text: str, record: dict[str, Any]) -> bool:
    """Whether the text's final answer equals the record's in meaning (`rewards.AnswerChecker`).

    The record's answer is a bare answer or a text that ends in #### and it. Raises OSError if the check failed.
    """
    checked = shared_checker().check(text, gold_answer(record["answer"]))
    if checked.reward is None:
        raise OSError(checked.detail)
    return checked.status == "right"


def load_verifier(name: str) -> Verifier:
    """The function that `module:function` names. Raises ValueError as `user_code.load_object`."""
    function = load_object(name, "verifier")
    if not callable(function):
        raise ValueError(f"verifier is {name!r}, a {type(function).__name__}; expected a function")
    return function


def verify(verifier: Verifier, text: str, record: dict[str, Any]) -> Verdict:
    """The verifier's verdict; an error if it raises or returns neither a bool nor a number from 0 to 1."""
    try:
        value = verifier(text, record)
    except (Exception, SystemExit) as error:  # a verifier may raise anything
        return Verdict(None, f"{type(error).__name__}: {error}")
    if isinstance(value, (numbers.Real, np.bool_)) and 0 <= value <= 1:
        return Verdict(float(value), "")
    return Verdict(None, f"returned {shown(value)}; expected a bool or a number from 0 to 1")


def read_tasks(path: str | Path, verifier: Verifier) -> list[tuple[str, dict[str, Any]]]:
    """[(file and line, record), …] of JSON lines {"prompt" or "messages", "answer"}; the verifier reads the answer.

    Raises ValueError with file, line and field.
    """
    records = []
    for where, record in with_unique_ids(read_objects(path)):
        record = normalise_prompt(record, where)
        answer = field(record, "answer", where)
        if verifier is exact_match and not isinstance(answer, str):
            raise ValueError(f"{where}: answer is {shown(answer)}; expected text, which is what exact_match compares")
        if verifier is same_answer:
            try:
                gold_answer(answer)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        records.append((where, record))
    if not records:
        raise ValueError(f"{path} holds no prompt")
    return records


def encode_tasks(
    model: Loaded, records: Sequence[tuple[str, dict[str, Any]]], max_new_tokens: int, *, raw: bool = False
) -> list[list[int]]:
    """The tokens of each prompt; `raw` as in `encode_prompts`.

    Raises ValueError for a record whose prompt and answer exceed the model's context.
    """
    prompts = encode_prompts(model, records, raw=raw)
    for (where, _), prompt in zip(records, prompts, strict=True):
        if len(prompt) + max_new_tokens > model.config.max_length:
            raise ValueError(
                f"{where}: prompt of {len(prompt)} tokens and {max_new_tokens} new ones pass the model's context of "
                f"{model.config.max_length}"
            )
    return prompts


def answers(
    engine: Engine, tokenizer: Tokenizer, requests: Iterable[Request], stop: Sequence[str]
) -> Iterator[Completion]:
    """Completions by `engine.text.complete`. Raises FloatingPointError if a log-probability is not finite."""
    for answer in complete(engine, tokenizer, requests, stop):
        check_finite([answer.logps])
        yield answer


def answer_results(
    records: Sequence[tuple[str, dict[str, Any]]],
    seeds: Sequence[int],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    ks: Sequence[int] = (),
) -> tuple[list[dict], list[Metric]]:
    """(samples, metrics); `completions` hold the same number of samples for each record, next to each other.

    `accuracy` is the mean score of all samples with a score; its interval treats the samples of a prompt as a cluster.
    pass@k and pass^k (`pass_rates`) are for each of `ks`, over prompts whose samples all have a score; an answer is
    right where its score is 1. `verifier_errors` counts samples without a score.
    """
    per_record = len(completions) // len(records)
    samples = []
    for i, (seed, completion, verdict) in enumerate(zip(seeds, completions, verdicts, strict=True)):
        number = i // per_record
        about = {"id": records[number][1].get("id", number), "sample": i % per_record, "seed": seed}
        samples.append(about | vars(completion) | verdict._asdict())
    by_prompt = [verdicts[first : first + per_record] for first in range(0, len(verdicts), per_record)]
    scores = [[verdict.score for verdict in group if verdict.score is not None] for group in by_prompt]
    metrics = [accuracy("accuracy", [group for group in scores if group])]
    whole = [group.count(1) for group in scores if len(group) == per_record]
    metrics += pass_metrics(whole, per_record, ks)
    errors = sum(verdict.score is None for verdict in verdicts)
    return samples, [*metrics, Metric("verifier_errors", errors, None, len(verdicts), "samples")]


def accuracy(name: str, scores: Sequence[Sequence[float]], unit: str = "samples") -> Metric:
    """The mean of all scores; the interval treats those of a prompt, at least one, as a cluster."""
    count = sum(map(len, scores))
    if not count:
        return Metric(name, None, None, 0, unit)
    mean = sum(map(sum, scores)) / count
    worth = effective_count([sum(group) for group in scores], [len(group) for group in scores])
    return Metric(name, mean, wilson_interval(mean, worth), count, unit)


def distinct(ids: Sequence[str]) -> Metric:
    """How many of the tasks differ in their content, which a hash names."""
    return Metric("distinct", len(set(ids)), None, len(ids), "tasks")

"""Multiple choice: the most likely of several answers to a prompt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ling_jax.chat.records import check_text, normalise_prompt
from ling_jax.chat.template import opened_reasoning
from ling_jax.checkpoint.folder import Loaded
from ling_jax.data import encode_documents
from ling_jax.data.json_lines import field, read_objects, with_unique_ids
from ling_jax.engine.prompts import encode_prompts
from ling_jax.evaluate.report import Metric
from ling_jax.evaluate.statistics import wilson_interval
from ling_jax.messages import shown


class Choice(NamedTuple):
    """One encoded choice with its prompt."""

    question: int
    prompt: list[int]
    tokens: list[int]


def read_questions(path: str | Path) -> list[tuple[str, dict[str, Any]]]:
    """[(file and line, record), …] of JSON lines {"prompt" or "messages", "choices": [text, …], "answer": index}.

    Raises ValueError with file, line and field.
    """
    records = []
    for where, record in with_unique_ids(read_objects(path)):
        record = normalise_prompt(record, where)
        _check_choices(record, where)
        records.append((where, record))
    if not records:
        raise ValueError(f"{path} holds no question")
    return records


def _check_choices(record: dict[str, Any], where: str) -> None:
    choices, answer = field(record, "choices", where), field(record, "answer", where)
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"{where}: choices is {shown(choices)}; expected a list of at least 2 texts")
    for i, choice in enumerate(choices):
        check_text(choice, f"{where}: choices[{i}]")
        if choice in choices[:i]:
            raise ValueError(f"{where}: choices[{i}] is {shown(choice)} again; choices must differ")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise ValueError(f"{where}: answer is {shown(answer)}; expected the index of a choice, 0 to {len(choices) - 1}")


def encode_choices(model: Loaded, records: Sequence[tuple[str, dict[str, Any]]], *, raw: bool = False) -> list[Choice]:
    """Every choice of every record, in order, with its prompt; `raw` as in `encode_prompts`.

    A choice is encoded alone and appended to the prompt's tokens, so its tokens do not depend on the end of the prompt;
    a space between the two belongs to the choice. Raises ValueError if prompt and choice exceed the context, and if the
    prompt ends inside <think>: a choice is an answer, not the start of reasoning.
    """
    encoded = encode_documents(model.tokenizer, (choice for _, record in records for choice in record["choices"]))
    choices, prompts = [], encode_prompts(model, records, raw=raw)
    for question, ((where, record), prompt) in enumerate(zip(records, prompts, strict=True)):
        if ("messages" in record or not raw) and (think := opened_reasoning(model.tokenizer, prompt)):
            told = "a choice would be scored as reasoning; give --thinking=off"
            raise ValueError(f"{where}: the prompt ends with {think}, and {told}")
        for i in range(len(record["choices"])):
            tokens = next(encoded).tolist()
            if len(prompt) + len(tokens) > model.config.max_length:
                raise ValueError(
                    f"{where}: prompt of {len(prompt)} tokens and choices[{i}] of {len(tokens)} pass the model's "
                    f"context of {model.config.max_length}"
                )
            choices.append(Choice(question, prompt, tokens))
    return choices


def choice_results(
    records: Sequence[tuple[str, dict[str, Any]]], choices: Sequence[Choice], logps: Mapping[int, np.ndarray]
) -> tuple[list[dict], list[Metric]]:
    """(a sample for each record, metrics) from the log-probabilities of each prompt + choice after its first token.

    The score of a choice is the sum of its tokens' log-probabilities in nats. `accuracy_per_byte` divides it by the
    UTF-8 bytes of the choice, so that length is no disadvantage. Ties go to the first choice. Intervals are Wilson's.
    """
    by_question: list[list[np.ndarray]] = [[] for _ in records]
    for i, choice in enumerate(choices):
        by_question[choice.question].append(logps[i][len(choice.prompt) - 1 :])
    samples = [_sample(i, record, by_question[i]) for i, (_, record) in enumerate(records)]
    return samples, [
        _accuracy("accuracy", [sample["correct"] for sample in samples]),
        _accuracy("accuracy_per_byte", [sample["correct_per_byte"] for sample in samples]),
    ]


def _sample(number: int, record: dict[str, Any], logps: Sequence[np.ndarray]) -> dict[str, Any]:
    sums = np.array([part.sum(dtype=np.float64) for part in logps])
    per_byte = sums / [len(choice.encode()) for choice in record["choices"]]
    chosen, chosen_per_byte = int(np.argmax(sums)), int(np.argmax(per_byte))
    return {
        "id": record.get("id", number),
        "choices": record["choices"],
        "answer": record["answer"],
        "logps": [part.tolist() for part in logps],
        "scores": sums.tolist(),
        "scores_per_byte": per_byte.tolist(),
        "chosen": chosen,
        "chosen_per_byte": chosen_per_byte,
        "correct": chosen == record["answer"],
        "correct_per_byte": chosen_per_byte == record["answer"],
    }


def _accuracy(name: str, correct: Sequence[bool]) -> Metric:
    mean = float(np.mean(correct))
    return Metric(name, mean, wilson_interval(mean, len(correct)), len(correct), "questions")

"""Shortest correct responses: of several answers to each query the shortest right one, pruned, as a conversation.

Ling 2.6 report §3.1.2 keeps the shortest correct candidate and lets a judge prune what is said again. How many answers,
the floor under their lengths and the rule in the judge's place are our choice.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ling_jax.align.records import converse, parsed_turns, record_of
from ling_jax.chat.conversations import Record
from ling_jax.chat.records import normalise_messages
from ling_jax.chat.template import encode_all
from ling_jax.chat.thinking import with_reasoning
from ling_jax.chat.tool_calls import parse_either
from ling_jax.checkpoint.folder import Loaded, ModelFolder
from ling_jax.data.token_bytes import token_bytes
from ling_jax.data.tokenizer import encode_documents
from ling_jax.envs import Task
from ling_jax.envs.sources import TaskSource, tasks
from ling_jax.evaluate.report import with_progress
from ling_jax.rewards import Candidate, flag_repeats, length_floor, pick_shortest, split_sentences, takes_pruned
from ling_jax.rl.collector import Collector, play
from ling_jax.rl.episode import EpisodeRequest
from ling_jax.rl.reader import make_reader

FINAL_ANSWER = "A:"  # what stands before it; what comes earlier derives it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a teacher answers."""

    context: int  # tokens of prompt, answers and tool output
    per_query: int = 8  # answers
    max_tokens: int = 0  # of an answer; 0: what the task says
    temperature: float = 1.0
    slots: int = 64  # answers that are written at once
    floor_percentile: float = 5.0  # of the lengths of right answers to tasks of a kind; shorter ones are left out
    seed: int = 0  # of the first answer; the next ones count up


class Answer(NamedTuple):
    """A right one: its turns solve the task."""

    task: Task
    messages: list[dict]
    candidate: Candidate

    @property
    def turns(self) -> list[str]:
        said = self.messages[len(self.task.messages) :]
        return [message["content"] for message in said if message["role"] == "assistant"]


class Figures(NamedTuple):
    """What came of a teacher's answers. Lengths are mean tokens, by the tokenizer of the model that will learn."""

    queries: int
    answers: int
    correct: int
    kept: int  # queries with an answer to learn from; the others are dropped
    pruned: int
    tokens_correct: float
    tokens_shortest: float
    tokens_pruned: float  # of the shortest ones after pruning: what is learnt


def shortest_correct(
    teacher: Loaded, sources: Sequence[TaskSource], student: ModelFolder, sampling: Sampling
) -> tuple[list[Record], Figures]:
    """(a conversation for each task that has a right answer, figures).

    A pure function of the weights and the arguments: what is lost is made again to the same bits.
    """
    queries = [task for source in sources for task in tasks(source)]
    right = right_answers(teacher, queries, student, sampling)
    picked = pick(right, sampling.floor_percentile)
    learnt = prune(picked, student)
    figures = Figures(
        queries=len(queries),
        answers=len(queries) * sampling.per_query,
        correct=len(right),
        kept=len(picked),
        pruned=sum(new is not old for new, old in zip(learnt, picked, strict=True)),
        tokens_correct=_mean_tokens(right),
        tokens_shortest=_mean_tokens(picked),
        tokens_pruned=_mean_tokens(learnt),
    )
    return [record_of(answer.task, answer.messages) for answer in learnt], figures


def right_answers(teacher: Loaded, queries: Sequence[Task], student: ModelFolder, sampling: Sampling) -> list[Answer]:
    """The teacher's answers that the environment accepts, in the order of the queries."""
    reader = make_reader(teacher, context=sampling.context, max_tokens=sampling.max_tokens)
    total = len(queries) * sampling.per_query
    numbers = [(i, i // sampling.per_query, (sampling.seed + i) % 2**32) for i in range(total)]
    requests = [EpisodeRequest(i, query, queries[query], seed=seed) for i, query, seed in numbers]
    with Collector(teacher.config, reader, sampling.slots, temperature=sampling.temperature) as collector:
        collector.load(teacher.params)
        ended = ([episode] for episode in play(collector, reader.begin_all(requests)))
        solved = {
            episode.id: (episode.task, episode.messages)
            for episode in with_progress(ended, "answers", total, doing="distill")
            if episode.trajectory.status == "finished"
            and episode.outcome == 1
            and _is_readable(episode.task, episode.messages, student)
        }
    return measured([solved[i] for i in sorted(solved)], student)


def _is_readable(task: Task, messages: Sequence[dict], student: ModelFolder) -> bool:
    """Whether the student can learn the conversation. A right one may lack the end of its reasoning, or have a call
    that nobody could read."""
    turns = [message["content"] for message in messages if message["role"] == "assistant"]
    if any(parse_either(turn, task.tools).errors for turn in turns):
        return False
    try:
        student.template.render(normalise_messages(parsed_turns(messages, task.tools)), tools=task.tools)
    except ValueError:
        return False
    return True


def measured(conversations: Sequence[tuple[Task, list[dict]]], student: ModelFolder) -> list[Answer]:
    """Right answers with their lengths as the student will learn them."""
    template = student.template
    learnt_as = [(task, parsed_turns(messages, task.tools)) for task, messages in conversations]
    pieces = [with_reasoning(template, said).render(said, tools=task.tools) for task, said in learnt_as]
    learnt = [sum(mask) for _, mask in encode_all(student.tokenizer, pieces)] if pieces else []
    bare = [Answer(task, messages, Candidate(True, 0, 0)) for task, messages in conversations]
    derivations = encode_documents(student.tokenizer, map(_derivation, bare))
    return [
        answer._replace(candidate=Candidate(True, tokens, len(ids)))
        for answer, tokens, ids in zip(bare, learnt, derivations, strict=True)
    ]


def pick(right: Sequence[Answer], floor_percentile: float) -> list[Answer]:
    """The shortest of each task's, at or above the floor of its kind (environment and difficulty)."""
    lengths, by_task = collections.defaultdict(list), collections.defaultdict(list)
    for answer in right:
        lengths[_kind(answer.task)].append(answer.candidate.tokens)
        by_task[answer.task.id].append(answer)
    floors = {kind: length_floor(found, percentile=floor_percentile) for kind, found in lengths.items()}
    picked = []
    for answers in by_task.values():
        best = pick_shortest([answer.candidate for answer in answers], floors[_kind(answers[0].task)])
        picked += [] if best is None else [answers[best]]
    return picked


def prune(answers: Sequence[Answer], student: ModelFolder) -> list[Answer]:
    """Each without what it says again, where the environment still accepts that and it is shorter."""
    pieces = token_bytes(student.tokenizer)[0]
    encoded = iter(encode_documents(student.tokenizer, (turn for answer in answers for turn in answer.turns)))
    shorter = [without_repeats(a.turns, [next(encoded).tolist() for _ in a.turns], pieces) for a in answers]
    tried = {i: converse(answer.task, shorter[i]) for i, answer in enumerate(answers)}
    accepted = {
        i: (answers[i].task, messages)
        for i, (messages, outcome) in tried.items()
        if outcome == 1 and _is_readable(answers[i].task, messages, student)
    }
    pruned = dict(zip(accepted, measured(list(accepted.values()), student), strict=True))
    return [
        pruned[i] if i in pruned and takes_pruned(answer.candidate, pruned[i].candidate) else answer
        for i, answer in enumerate(answers)
    ]


def without_repeats(turns: Sequence[str], encoded: Sequence[list[int]], pieces: Sequence[bytes]) -> list[str]:
    """A single turn without sentences that repeat earlier ones; several without turns that are an earlier one again.

    `encoded` are the turns' tokens, `pieces` what each token of the vocabulary writes. `rewards.flag_repeats` judges.
    Of turns it takes only whole repeats: calls of the same tool look alike.
    """
    if len(turns) > 1:
        turn_ids = [i for i, ids in enumerate(encoded[:-1]) for _ in ids]
        flags = flag_repeats([token for ids in encoded[:-1] for token in ids], turn_ids, overlap=1.0)
        return [turn for turn, flagged in zip(turns[:-1], flags, strict=True) if not flagged] + [turns[-1]]
    (ids,) = encoded
    sentence_ids = split_sentences([pieces[token] for token in ids]).ids
    flags = flag_repeats(ids, sentence_ids)
    kept = [pieces[token] for token, sentence in zip(ids, sentence_ids, strict=True) if not flags[sentence]]
    return [b"".join(kept).decode("utf-8", "replace")]


def _derivation(answer: Answer) -> str:
    """All turns up to the final answer."""
    *earlier, last = answer.turns
    return "".join(earlier) + last.rpartition(FINAL_ANSWER)[0]


def _kind(task: Task) -> tuple[str, int]:
    return task.environment, task.difficulty


def _mean_tokens(answers: Sequence[Answer]) -> float:
    return float(np.mean([answer.candidate.tokens for answer in answers])) if answers else 0.0

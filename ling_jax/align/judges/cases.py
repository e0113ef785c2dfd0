"""What judges read and what they say: plain values."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ling_jax.chat.tool_calls import parse_either
from ling_jax.rewards import count_flagged, flag_repeats
from ling_jax.rl.episode import Episode
from ling_jax.rl.reader import Reader


class Answer(NamedTuple):
    """An answer to a prompt. A judge model reads its texts alone."""

    text: str  # all that the policy wrote, a turn that was cut off too
    final: str  # its last turn without reasoning, calls and end token, which an instruction's items are about
    tokens: Sequence[int]  # [T]
    sentence_ids: Sequence[int]  # [T] which sentence each token is in, counted through
    sentences: Sequence[str]  # their texts
    outcome: float  # 1: the environment calls it solved
    finished: bool  # no limit cut it off

    @property
    def repeated(self) -> int:
        """Tokens in sentences that repeat earlier ones, by `rewards.flag_repeats`."""
        return count_flagged(flag_repeats(self.tokens, self.sentence_ids), self.sentence_ids)


class Case(NamedTuple):
    """The answers to one prompt."""

    prompt: str
    answers: Sequence[Answer]


class Judged(NamedTuple):
    """What a judge found in G answers by K rubrics."""

    merits: np.ndarray  # [G, K] float32 in [0, 1]; NaN where an answer could not be judged
    defects: np.ndarray  # likewise
    errors: tuple[str, ...]  # [G] why an answer could not be judged; "" where it was

    def rows(self, rows: Sequence[int]) -> "Judged":
        """What it found in these answers alone."""
        return Judged(self.merits[rows], self.defects[rows], tuple(self.errors[i] for i in rows))


def case_of(episodes: Sequence[Episode], reader: Reader) -> Case:
    """The answers to one prompt as a judge reads them."""
    messages = episodes[0].task.messages
    prompt = (
        messages[0]["content"] if len(messages) == 1 else "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)
    )
    return Case(prompt, [answer_of(episode, reader) for episode in episodes])


def answer_of(episode: Episode, reader: Reader) -> Answer:
    trajectory = episode.trajectory
    mask = trajectory.loss_mask
    tokens, ids = trajectory.completion_ids[mask].tolist(), reader.sentence_ids(trajectory)[mask].tolist()
    runs: list[list[int]] = [[] for _ in range(max(ids, default=-1) + 1)]
    for token, sentence in zip(tokens, ids, strict=True):
        runs[sentence].append(token)
    return Answer(
        text=reader.text(tokens),
        final=parse_either(last_turn(episode, reader), episode.task.tools).content,
        tokens=tokens,
        sentence_ids=ids,
        sentences=[reader.text(run) for run in runs],
        outcome=episode.outcome,
        finished=trajectory.status == "finished",
    )


def last_turn(episode: Episode, reader: Reader) -> str:
    """What the policy wrote last, its reasoning included, also where a limit cut it off; "" where it wrote nothing."""
    trajectory = episode.trajectory
    if not trajectory.turns:
        return ""
    start, stop = trajectory.turns[-1]
    tokens = trajectory.completion_ids[start:stop].tolist()
    if tokens[-1] in reader.end_ids:
        tokens.pop()
    return episode.opened + reader.text(tokens)

"""Between conversations and tokens: a stage's tokenizer and template."""

import codecs
import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from ling_jax.chat.continuation import continue_conversation
from ling_jax.chat.end_tokens import token_texts
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate, Piece, encode_all, opens_reasoning
from ling_jax.chat.tool_calls import THINK
from ling_jax.checkpoint.folder import Loaded, ModelFolder
from ling_jax.data.token_bytes import token_bytes
from ling_jax.envs.base import Message
from ling_jax.rewards import split_sentences
from ling_jax.rl.episode import Episode, EpisodeRequest, Refused
from ling_jax.rl.trajectory import Trajectory


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Renders and encodes what a policy reads, and decodes what it wrote."""

    tokenizer: Tokenizer
    template: ChatTemplate | FolderTemplate
    end_ids: frozenset[int]
    context: int  # tokens that a row can hold
    max_tokens: int = 0  # at most, whatever the task says; 0: what the task says
    _bytes: tuple[list[bytes], list[bool]] = dataclasses.field(init=False)
    _ends: list[str] = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "_bytes", token_bytes(self.tokenizer))
        object.__setattr__(self, "_ends", token_texts(self.tokenizer, self.end_ids))

    def begin(self, requests: Sequence[EpisodeRequest]) -> list[Episode | Refused]:
        """For each request, in order: its episode before the first token, or why there can be none."""
        pieces = {i: self._prompt(request) for i, request in enumerate(requests)}
        rendered = {i: found for i, found in pieces.items() if not isinstance(found, Refused)}
        prompts = dict(zip(rendered, encode_all(self.tokenizer, list(rendered.values())), strict=True))
        return [
            self._episode(request, prompts[i][0], rendered[i]) if i in prompts else pieces[i]
            for i, request in enumerate(requests)
        ]

    def begin_all(self, requests: Sequence[EpisodeRequest]) -> list[Episode]:
        """`begin` of requests that all have to be good. Raises ValueError with the reason of the first refused one."""
        begun = self.begin(requests)
        for found in begun:
            if isinstance(found, Refused):
                raise ValueError(found.reason)
        return begun

    def text(self, tokens: Sequence[int]) -> str:
        """As it was written: a special token in it is its name, which an answer cannot hide behind."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)

    def token_texts(self, tokens: Sequence[int]) -> list[str]:
        """The text that each token adds; a character of several tokens belongs to its last one."""
        pieces, _ = self._bytes
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(tokens) - 1
        return [
            decoder.decode(pieces[token] if token < len(pieces) else b"", final=i == last)
            for i, token in enumerate(tokens)
        ]

    def sentence_ids(self, trajectory: Trajectory) -> np.ndarray:
        """[T] int32: which sentence of its turns each drawn token is in, counted through; -1 for other tokens."""
        ids = np.full(len(trajectory), -1, np.int32)
        pieces, special = self._bytes
        for start, stop in trajectory.turns:
            tokens = trajectory.completion_ids[start:stop].tolist()
            known = [token < len(pieces) for token in tokens]  # a model's vocabulary may be larger than its tokenizer's
            found = split_sentences(
                [pieces[token] if here else b"" for token, here in zip(tokens, known, strict=True)],
                [here and special[token] for token, here in zip(tokens, known, strict=True)],
            )
            ids[start:stop] = np.asarray(found.ids) + ids.max(initial=-1) + 1
        return ids

    def continue_episode(
        self, episode: Episode, words: str, observation: Sequence[Message]
    ) -> tuple[Message, list[Piece]]:
        """`chat.continuation.continue_conversation` after the episode's history, with its errors."""
        template, tools = self._template(episode.effort), episode.task.tools
        return continue_conversation(template, episode.history, words, observation, tools=tools, end_tokens=self._ends)

    def _template(self, effort: str | None):
        return self.template if effort is None else dataclasses.replace(self.template, effort=effort)

    def _prompt(self, request: EpisodeRequest) -> list[Piece] | Refused:
        task = request.task
        try:
            return self._template(request.effort).render(task.messages, tools=task.tools, prompt=True)
        except ValueError as error:
            return Refused(request, f"{_name(request)} cannot be rendered: {error}")

    def _episode(self, request: EpisodeRequest, prompt: list[int], pieces: list[Piece]) -> Episode | Refused:
        task = request.task
        max_tokens = min(self.max_tokens or task.max_tokens, task.max_tokens)
        if len(prompt) + max_tokens > self.context:
            return Refused(
                request,
                f"{_name(request)} has a prompt of {len(prompt)} tokens and may write {max_tokens}; the context has "
                f"{self.context}: raise rollout.context, or lower rollout.max_tokens or the difficulty",
            )
        return Episode(
            id=request.id,
            number=request.number,
            task=task,
            seed=request.seed,
            max_tokens=max_tokens,
            trajectory=Trajectory(task.id, prompt),
            messages=list(task.messages),
            history=list(task.messages),
            effort=request.effort,
            opened=THINK if opens_reasoning(pieces) else "",
        )


def make_reader(loaded: Loaded | ModelFolder, *, context: int, max_tokens: int = 0) -> Reader:
    """Raises ValueError where the context passes the model's."""
    if context > loaded.config.max_length:
        raise ValueError(f"the context is {context} tokens; the model's, max_length, is {loaded.config.max_length}")
    return Reader(loaded.tokenizer, loaded.template, loaded.end_ids, context, max_tokens)


def _name(request: EpisodeRequest) -> str:
    task = request.task
    return f"task {task.id} ({task.environment}, difficulty {task.difficulty})"

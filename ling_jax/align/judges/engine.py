"""A model of this project as judge: greedy, in this process, held to the form of the reply token by token."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ling_jax.align.judges.forms import Form, Question
from ling_jax.align.judges.judgements import Reply
from ling_jax.chat.thinking import with_thinking
from ling_jax.checkpoint.folder import Loaded, ModelFolder
from ling_jax.engine import EXACT_TILE, Request
from ling_jax.engine.generate import engine_for
from ling_jax.engine.prompts import encode_prompts
from ling_jax.engine.text import complete


class EngineJudge:
    """Replies of a model; its weights are loaded with the first question, and stay beside those of the policy."""

    def __init__(self, folder: ModelFolder, max_tokens: int):
        with contextlib.suppress(ValueError):  # a template without such an option
            folder = dataclasses.replace(folder, template=with_thinking(folder.template, "off"))
        self._folder, self._max_tokens = folder, max_tokens
        self._forms = _FormTokens(folder)

    def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply each. A question that passes the model's context has an error."""
        model, room = self._model, self._folder.config.max_length - self._max_tokens
        prompts = encode_prompts(model, [("", {"prompt": question.text}) for question in questions])
        fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= room]
        found = dict(zip(fits, self._replies([questions[i] for i in fits], [prompts[i] for i in fits]), strict=True))
        long = f"{{}} tokens of question and {self._max_tokens} of reply pass the judge's context"
        return [found.get(i) or Reply("", long.format(len(prompt))) for i, prompt in enumerate(prompts)]

    def _replies(self, questions: Sequence[Question], prompts: Sequence[list[int]]) -> Iterator[Reply]:
        if not prompts:
            return
        # 64 slots make an engine exact: a reply does not depend on the questions beside it.
        engine = engine_for(
            self._model.params, self._model.config, prompts, max_new_tokens=self._max_tokens, slots=EXACT_TILE
        )
        ends = tuple(sorted(self._folder.end_ids))
        requests = (
            Request(i, prompt, self._max_tokens, seed=0, temperature=0.0, stop_ids=ends, allowed=self._forms.allowed(q))
            for i, (q, prompt) in enumerate(zip(questions, prompts, strict=True))
        )
        for completion in complete(engine, self._folder.tokenizer, requests):
            cut_off = f"the judge's reply passes judge.max_tokens, {self._max_tokens}"
            yield Reply("", cut_off) if completion.ended == "length" else Reply(completion.text)

    @functools.cached_property
    def _model(self) -> Loaded:
        return self._folder.load()


class _FormTokens:
    """Which tokens a form allows, for one tokenizer."""

    def __init__(self, folder: ModelFolder):
        self._folder = folder
        self._ids = functools.cache(self._encode)

    def allowed(self, question: Question) -> Callable[[Sequence[int]], np.ndarray] | None:
        """`Request.allowed` of a question; None where its form takes any text."""
        if question.form.following(()) is None:
            return None
        return lambda tokens: self._mask(question.form, tuple(tokens))

    def _mask(self, form: Form, tokens: tuple[int, ...]) -> np.ndarray:
        mask = np.zeros(self._folder.config.vocab_size, bool)
        mask[self._next(form, tokens)] = True
        return mask

    def _next(self, form: Form, tokens: tuple[int, ...]) -> list[int]:
        """The tokens that may come next: each piece is encoded by itself, and the tokens are a walk along pieces."""
        pieces: list[str] = []
        while options := form.following(pieces):
            encoded = {piece: self._ids(piece) for piece in options}
            whole = next((piece for piece, ids in encoded.items() if tokens[: len(ids)] == ids), None)
            if whole is None:
                return [ids[len(tokens)] for ids in encoded.values() if ids[: len(tokens)] == tokens]
            pieces.append(whole)
            tokens = tokens[len(encoded[whole]) :]
        return sorted(self._folder.end_ids)

    def _encode(self, piece: str) -> tuple[int, ...]:
        return tuple(self._folder.tokenizer.encode(piece, add_special_tokens=False).ids)

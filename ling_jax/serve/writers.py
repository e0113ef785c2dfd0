"""Answers as OpenAI's JSON: whole, and in chunks of a stream."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from ling_jax.chat.answer_stream import Part
from ling_jax.serve.asked import Asked, Served
from ling_jax.serve.choice import Choice, Delta, Top, answer_of, joined, version_runs

Json = dict[str, Any]


class Writer:
    """The JSON of one request's answers; `kind` is the object's name, as in `text_completion`."""

    kind, chunk_kind = "", ""

    def __init__(self, served: Served, asked: Asked, id: str):
        self.served, self.asked = served, asked
        self._head = {"id": id, "created": int(time.time()), "model": served.name}

    def first(self, choices: Sequence[Choice]) -> list[Json]:
        """Chunks before those of events."""
        return []

    def chunks(self, choice: Choice, delta: Delta) -> list[Json]:
        """The chunks of what an event added."""
        raise NotImplementedError

    def whole(self, choices: Sequence[Choice]) -> Json:
        """The body of an answer that is not streamed."""
        body = {**self._head, "object": self.kind, "choices": [self._choice(choice) for choice in choices]}
        body |= {"usage": usage(self.asked, choices)}
        return body | (self._prompt_ids(choices) if self.asked.token_ids else {})

    def usage_chunk(self, choices: Sequence[Choice]) -> Json:
        """The last chunk, where the request asks for it."""
        return {**self._head, "object": self.chunk_kind, "choices": [], "usage": usage(self.asked, choices)}

    def _choice(self, choice: Choice) -> Json:
        raise NotImplementedError

    def _chunk(self, choice: Choice, fields: Json, delta: Delta | None = None) -> Json:
        given = {"index": choice.number, **fields, "finish_reason": (delta.finish or None) if delta else None}
        if self.asked.token_ids and delta is not None:
            given |= _ids([delta])
        chunk = {**self._head, "object": self.chunk_kind, "choices": [given]}
        return chunk | ({"usage": None} if self.asked.include_usage else {})

    def _prompt_ids(self, choices: Sequence[Choice]) -> Json:
        prompts = [list(choice.request.tokens) for choice in choices[:: self.asked.n]]
        return {"prompt_token_ids": prompts[0] if len(prompts) == 1 else prompts}

    def _token(self, token: int) -> str:
        return self.served.bytes_of(token).decode(errors="replace")


class ChatWriter(Writer):
    """Chat completions."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, served: Served, asked: Asked, id: str):
        super().__init__(served, asked, id)
        self._calls = [0] * len(asked.requests)  # that were sent

    def first(self, choices: Sequence[Choice]) -> list[Json]:
        """The role of each answer."""
        chunks = [self._chunk(choice, {"delta": {"role": "assistant", "content": ""}}) for choice in choices]
        if self.asked.token_ids:
            chunks[0] |= self._prompt_ids(choices)
        return chunks

    def chunks(self, choice: Choice, delta: Delta) -> list[Json]:
        """A chunk for each part; the last has the log-probs and the end."""
        deltas = [found for part in delta.parts for found in self._deltas(choice, part)] or [{}]
        *before, last = deltas
        if not (last or delta.finish or self._has_tokens(delta)):
            return []
        fields = {"delta": last}
        if self.asked.logprobs is not None:
            fields["logprobs"] = self._logprobs([delta])
        return [*(self._chunk(choice, {"delta": found}) for found in before), self._chunk(choice, fields, delta)]

    def _has_tokens(self, delta: Delta) -> bool:
        return bool(delta.tokens) and (self.asked.token_ids or self.asked.logprobs is not None)

    def _deltas(self, choice: Choice, part: Part) -> list[Json]:
        if part.call is None:
            return [{"reasoning_content" if part.kind == "reasoning" else "content": part.text}]
        index = self._calls[choice.number]
        self._calls[choice.number] += 1
        call = _call(part.call)
        arguments = call["function"].pop("arguments")
        begun = {"index": index, **call, "function": {**call["function"], "arguments": ""}}
        return [{"tool_calls": [begun]}, {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}]

    def _choice(self, choice: Choice) -> Json:
        answer = answer_of(choice.deltas)
        calls = [_call(call) for call in answer.get("tool_calls", ())]
        message = {"role": "assistant", "content": answer["content"] or (None if calls else ""), "refusal": None}
        message |= {"reasoning_content": answer["reasoning"]} if "reasoning" in answer else {}
        message |= {"tool_calls": calls} if calls else {}
        logprobs = None if self.asked.logprobs is None else self._logprobs(choice.deltas)
        found = {"index": choice.number, "message": message, "logprobs": logprobs}
        found |= {"finish_reason": choice.deltas[-1].finish}
        return found | (_ids(choice.deltas) if self.asked.token_ids else {})

    def _logprobs(self, deltas: list[Delta]) -> Json:
        tokens, logps, tops = (joined(deltas, name) for name in ("tokens", "logps", "tops"))
        rows = [
            {**self._row(token, logp), "top_logprobs": [self._row(*item) for item in (tops[i] if tops else ())]}
            for i, (token, logp) in enumerate(zip(tokens, logps, strict=True))
        ]
        return {"content": rows, "refusal": None}

    def _row(self, token: int, logp: float) -> Json:
        return {"token": self._token(token), "logprob": logp, "bytes": list(self.served.bytes_of(token))}


class CompletionWriter(Writer):
    """Completions of plain text."""

    kind = chunk_kind = "text_completion"

    def __init__(self, served: Served, asked: Asked, id: str):
        super().__init__(served, asked, id)
        self._offsets = [0] * len(asked.requests)  # characters of the tokens so far
        self._begun: set[int] = set()  # numbers of the choices that have a chunk

    def chunks(self, choice: Choice, delta: Delta) -> list[Json]:
        """One chunk, or none of an event that adds nothing yet."""
        shows_tokens = self.asked.token_ids or self.asked.logprobs is not None
        if not (delta.text or delta.finish or (shows_tokens and (delta.tokens or delta.prompt_logps))):
            return []
        begins = choice.number not in self._begun
        self._begun.add(choice.number)
        text = (self._echoed(choice) if begins else "") + delta.text
        chunk = self._chunk(choice, {"text": text, "logprobs": self._logprobs(choice, [delta], begins)}, delta)
        if begins and self.asked.token_ids:
            chunk["choices"][0]["prompt_token_ids"] = list(choice.request.tokens)
        return [chunk]

    def _choice(self, choice: Choice) -> Json:
        text = self._echoed(choice) + "".join(delta.text for delta in choice.deltas)
        found = {"index": choice.number, "text": text, "logprobs": self._logprobs(choice, choice.deltas, True)}
        found |= {"finish_reason": choice.deltas[-1].finish}
        return found | (_ids(choice.deltas) if self.asked.token_ids else {})

    def _echoed(self, choice: Choice) -> str:
        tokens = list(choice.request.tokens)
        return self.served.tokenizer.decode(tokens, skip_special_tokens=False) if self.asked.echo else ""

    def _logprobs(self, choice: Choice, deltas: list[Delta], begins: bool) -> Json | None:
        """The columns of tokens, their log-probs and their offsets in the text, in characters."""
        if self.asked.logprobs is None:
            return None
        tokens, logps, tops = (joined(deltas, name) for name in ("tokens", "logps", "tops"))
        listed: list[Top | None] = list(tops) or [None] * len(tokens)
        if self.asked.echo and begins:
            prompt = list(choice.request.tokens)
            tokens, logps = prompt + tokens, [None, *joined(deltas, "prompt_logps"), *logps]
            listed = [None] * len(prompt) + listed
        texts, offsets = [self._token(token) for token in tokens], []
        for text in texts:
            offsets.append(self._offsets[choice.number])
            self._offsets[choice.number] += len(text)
        return {
            "tokens": texts,
            "token_logprobs": logps,
            "top_logprobs": [None if top is None else {self._token(t): logp for t, logp in top} for top in listed],
            "text_offset": offsets,
        }


def usage(asked: Asked, choices: Sequence[Choice]) -> Json:
    """How many tokens the request took; a prompt counts once, whatever n is."""
    prompt = sum(len(request.tokens) for request in asked.requests[:: asked.n]) + asked.scored
    drawn = sum(choice.drawn for choice in choices) - asked.scored
    cached = {"cached_tokens": sum(choice.cached for choice in choices)}
    counts = {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}
    return counts | {"prompt_tokens_details": cached}


def _ids(deltas: list[Delta]) -> Json:
    return {"token_ids": joined(deltas, "tokens"), "weight_versions": version_runs(deltas)}


def _call(call: Json) -> Json:
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    function = {"name": call["name"], "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}

"""Bodies of requests to what the engine is asked: prompts as tokens, sampling, grammars."""

import dataclasses
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ling_jax.chat.default_source import default_source
from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.records import normalise_messages
from ling_jax.chat.template import ChatTemplate, Piece, encode, opened_reasoning
from ling_jax.chat.thinking import with_reasoning, with_thinking
from ling_jax.data.tokenizer import EOS
from ling_jax.engine.request import MAX_STOP_IDS, Request, context_error, request_error
from ling_jax.messages import shown
from ling_jax.serve.calls import Call
from ling_jax.serve.chats import Chat, continued
from ling_jax.serve.errors import ApiError, bad_value
from ling_jax.serve.grammar import Allowed, Grammars
from ling_jax.serve.protocol import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    ChatBody,
    CompletionBody,
    NamedTool,
    Sampling,
    TokenizeBody,
    Tool,
)
from ling_jax.serve.rule import B, Rule

JSON_OBJECT = {"type": "object"}


@dataclasses.dataclass(frozen=True)
class Served:
    """What requests are translated by: the model's texts, and the sizes of its engine."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | FolderTemplate
    end_ids: frozenset[int]
    vocab_size: int
    max_tokens: int  # the longest context of a request
    grammars: Grammars
    token_bytes: Sequence[bytes]  # of every id of the tokenizer

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token; none of an id that the tokenizer lacks."""
        return self.token_bytes[token] if token < len(self.token_bytes) else b""


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What a session has when a call is asked."""

    calls: Sequence[Call]  # those that have ended
    rule: Rule | None  # how its answers are drawn, whatever is asked
    drawn: int  # tokens of its answers, so far


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one HTTP request asks: `n` answers to each prompt, next to each other in `requests`."""

    requests: list[Request]
    n: int
    stop: Sequence[str]
    logprobs: int | None  # the likeliest tokens beside each token; None: no log-probs
    token_ids: bool
    stream: bool
    include_usage: bool
    echo: bool = False
    tools: Sequence[dict[str, Any]] = ()
    opened: str = ""  # <think> where the prompt ends with it
    reads_calls: bool = False
    one_call: bool = False  # an answer ends with its first call
    scored: int = 0  # tokens of all prompts that are drawn by force
    chat: Chat | None = None  # what the prompt of a chat is made of
    known: int = 0  # calls of its session that had ended when it came

    @property
    def is_score(self) -> bool:
        """Whether it asks for log-probs of prompts, whose tokens are drawn by force."""
        return self.echo and bool(self.logprobs)


def asked_completion(served: Served, body: CompletionBody, id: str, earlier: Earlier | None = None) -> Asked:
    """What a completion asks, drawn as the rule of its session says. Raises ApiError that names the field."""
    body = _ruled(body, earlier)
    check_model(served, body.model)
    prompts = _prompts(served, body)
    if len(prompts) * body.n > MAX_CHOICES:
        raise ApiError(400, f"{len(prompts)} prompts with n {body.n}: more than {MAX_CHOICES} choices", "n")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens is 0, and echo is false: there is nothing to answer", "max_tokens")
    if empty := [i for i, prompt in enumerate(prompts) if not prompt]:
        raise ApiError(400, f"prompt {empty[0]} has no tokens; give at least one", "prompt")
    if body.echo and body.logprobs:
        return _asked_scores(served, body, id, prompts)
    count = len(prompts) * body.n
    sampling = _sampling(served, body) | {"top_logprobs": body.logprobs or 0, "prompt_logprobs": body.echo}
    rooms = [(prompt, _room(served, body.max_tokens, prompt, count, earlier)) for prompt in prompts]
    requests = _requests(served, body, id, rooms, sampling, _where(body, "prompt"))
    return Asked(requests, **_common(body, body.logprobs), echo=body.echo, known=_known(earlier))


def _asked_scores(served: Served, body: CompletionBody, id: str, prompts: list[list[int]]) -> Asked:
    """A prompt with the likeliest tokens beside each of its own, as evaluation harnesses ask for it.

    The engine gives these for drawn tokens alone, so all but the first token of the prompt are drawn by force.
    """
    if body.max_tokens > 1 or body.n > 1 or body.return_token_ids:
        message = f"logprobs is {body.logprobs}; with echo, it is 0, or 1 to {MAX_TOP_LOGPROBS} where max_tokens is at "
        raise ApiError(400, message + "most 1, n is 1 and return_token_ids is false", "logprobs")
    sampling = _sampling(served, body) | {"top_logprobs": body.logprobs, "stop_ids": (), "min_new_tokens": 0}
    requests = []
    for i, prompt in enumerate(prompts):
        if error := context_error(prompt, body.max_tokens, 0, served.vocab_size, served.max_tokens):
            raise ApiError(400, error, _where(body, "prompt"))
        if len(prompt) + body.max_tokens < 2:
            raise ApiError(400, "prompt has one token, max_tokens is 0: no token has a log-prob", "prompt")
        forced = [(prompt[:1], len(prompt) - 1 + body.max_tokens)]
        (request,) = _requests(served, body, f"{id}-{i}", forced, sampling, _where(body, "prompt"))
        requests.append(dataclasses.replace(request, allowed=forced_tokens(prompt[1:], served.vocab_size)))
    scored = sum(len(prompt) - 1 for prompt in prompts)
    return Asked(requests, **_common(body, body.logprobs), echo=True, scored=scored)


def forced_tokens(tokens: Sequence[int], vocab_size: int) -> Allowed:
    """Masks [W] that leave these tokens one after the other, then any."""

    def allowed(drawn: Sequence[int]) -> np.ndarray:
        if len(drawn) >= len(tokens):
            return np.ones(vocab_size, bool)
        return np.arange(vocab_size) == tokens[len(drawn)]

    return allowed


def asked_chat(served: Served, body: ChatBody, id: str, earlier: Earlier | None = None) -> Asked:
    """What a chat completion asks, drawn as the rule of its session says. Raises ApiError that names the field.

    Where it goes on from an `earlier` chat of its session, its prompt begins with the tokens of that one, as they were
    drawn.
    """
    body = _ruled(body, earlier)
    check_model(served, body.model)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", "top_logprobs")
    if body.max_tokens == 0:
        raise ApiError(400, "max_tokens is 0; expected at least 1", "max_tokens")
    tools, forced = _tools(body)
    template = _template(served, body)
    prompt, chat = _chat_prompt(served, body, tools, template, earlier)
    opened = opened_reasoning(served.tokenizer, prompt)
    grammar = _grammar(served, body, forced, "begun" if opened else "maybe" if template.thinking else "")
    sampling = _sampling(served, body) | {"top_logprobs": body.top_logprobs}
    room = body.max_completion_tokens or body.max_tokens or max(served.max_tokens - len(prompt), 1)
    room = _room(served, room, prompt, body.n, earlier)
    requests = _requests(served, body, id, [(prompt, room)], sampling, _where(body, "messages"), grammar)
    return Asked(
        requests,
        **_common(body, body.top_logprobs if body.logprobs else None),
        tools=tools,
        opened=opened,
        reads_calls=bool(tools),
        one_call=bool(tools) and not body.parallel_tool_calls,
        chat=chat,
        known=_known(earlier),
    )


def _chat_prompt(
    served: Served,
    body: ChatBody,
    tools: Sequence[Mapping[str, Any]],
    template: ChatTemplate | FolderTemplate,
    earlier: Earlier | None,
) -> tuple[list[int], Chat | None]:
    """(the tokens of the prompt, what it is made of where the call is recorded)."""
    if earlier is None:
        return body.prompt_token_ids or chat_tokens(served, body.messages, tools, template), None
    try:
        messages = normalise_messages(list(body.messages))
    except ValueError as error:
        raise bad_value(error, "messages") from None
    chat = Chat(messages, messages, tools, template, with_reasoning(template, messages), _size([messages, tools]))
    if body.prompt_token_ids:
        return body.prompt_token_ids, chat
    found = continued(served.tokenizer, served.end_ids, earlier.calls, chat)
    return found or (chat_tokens(served, body.messages, tools, template), chat)


def _size(value: Any) -> int:
    """Bytes that a value of JSON takes, with all that it holds."""
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sys.getsizeof(value) + sum(map(_size, inner))


def _ruled(body: B, earlier: Earlier | None) -> B:
    return body if earlier is None or earlier.rule is None else earlier.rule.body(body)


def _known(earlier: Earlier | None) -> int:
    return 0 if earlier is None else len(earlier.calls)


def _room(served: Served, asked: int, prompt: Sequence[int], count: int, earlier: Earlier | None) -> int:
    """How many tokens each of `count` answers may have; where a rule says so, fewer than were asked."""
    if earlier is None or earlier.rule is None:
        return asked
    return earlier.rule.room(asked, served.max_tokens - len(prompt), earlier.drawn, count)


def asked_tokens(served: Served, body: TokenizeBody) -> list[int]:
    """The tokens of a text, or of a conversation up to the answer. Raises ApiError that names the field."""
    check_model(served, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give one of prompt and messages", "prompt")
    if body.prompt is not None:
        return text_tokens(served, body.prompt, "prompt")
    return chat_tokens(served, body.messages, [_as_given(tool) for tool in body.tools], served.template)


def tokenizer_info(served: Served) -> dict[str, Any]:
    """{eos_token, bos_token, pad_token, chat_template} as texts; None for what there is not."""
    eos = served.tokenizer.token_to_id(EOS)
    end = eos if eos in served.end_ids else min(served.end_ids)
    template = served.template
    source = template.source if isinstance(template, FolderTemplate) else default_source()
    tokens = {"eos_token": served.tokenizer.id_to_token(end), "bos_token": None, "pad_token": None}
    return tokens | {"chat_template": source}


def check_model(served: Served, name: str | None) -> None:
    """Raises ApiError 404 where another model is asked."""
    if name is not None and name != served.name:
        message = f"model is {shown(name)}; this server has {served.name!r}"
        raise ApiError(404, message, "model", "model_not_found")


def text_tokens(served: Served, text: str, where: str) -> list[int]:
    """The tokens of a text in which names of special tokens are these tokens."""
    try:
        return served.tokenizer.encode(text, add_special_tokens=False).ids
    except Exception as error:  # the library raises no narrower class
        raise bad_value(error, where) from None


def chat_tokens(
    served: Served, messages: Sequence[Any], tools: Sequence[Mapping[str, Any]], template: ChatTemplate | FolderTemplate
) -> list[int]:
    """The tokens of a conversation up to the answer; names of special tokens in it are plain text."""
    try:
        conversation = normalise_messages(list(messages))
        if tools and isinstance(template, FolderTemplate) and not template.reads(["tools"]):
            raise ApiError(400, f"the chat template of {served.name} reads no tools; leave them out", "tools")
        pieces: list[Piece] = with_reasoning(template, conversation).render(conversation, tools=tools, prompt=True)
        return encode(served.tokenizer, pieces)[0]
    except ValueError as error:
        raise bad_value(error, "messages") from None


def _prompts(served: Served, body: CompletionBody) -> list[list[int]]:
    if body.prompt_token_ids is not None:
        return [body.prompt_token_ids]
    prompt = body.prompt
    if isinstance(prompt, str):
        return [text_tokens(served, prompt, "prompt")]
    if isinstance(prompt, list) and prompt:
        if all(type(token) is int for token in prompt):
            return [prompt]
        if all(isinstance(text, str) for text in prompt):
            return [text_tokens(served, text, f"prompt[{i}]") for i, text in enumerate(prompt)]
        if all(isinstance(ids, list) and all(type(token) is int for token in ids) for ids in prompt):
            return prompt
    found = "missing" if prompt is None else shown(prompt)
    raise ApiError(400, f"prompt is {found}; expected a text, token ids, or a list of one of them", "prompt")


def _template(served: Served, body: ChatBody) -> ChatTemplate | FolderTemplate:
    """The template with the request's thinking and effort."""
    options, effort = body.chat_template_kwargs, body.reasoning_effort
    asked = options.thinking if options.enable_thinking is None else options.enable_thinking
    if effort is None and asked is None:
        return served.template
    thinks = asked if asked is not None else effort != "none"
    word = "" if effort in (None, "none") else effort
    reads_thinking = not isinstance(served.template, FolderTemplate) or asked is not None or effort == "none"
    try:
        return with_thinking(served.template, ("on" if thinks else "off") if reads_thinking else "default", word)
    except ValueError as error:
        raise ApiError(400, str(error), "reasoning_effort" if effort else "chat_template_kwargs") from None


def _tools(body: ChatBody) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(the tools that the prompt lists, {name: schema of arguments} of those of which one must be called)."""
    tools = {tool.function.name: tool for tool in body.tools}
    if len(tools) < len(body.tools):
        raise ApiError(400, "tools have a name twice", "tools")
    choice, named = body.tool_choice, None
    if isinstance(choice, dict):
        try:
            named = NamedTool.model_validate(choice).function.name
        except ValueError:
            raise _bad_choice(choice) from None
        if named not in tools:
            raise ApiError(400, f"tool_choice names {named!r}, which is none of tools", "tool_choice")
    elif choice not in ("none", "auto", "required"):
        raise _bad_choice(choice)
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice is 'required', and there are no tools", "tool_choice")
    listed = [] if choice == "none" else [_as_given(tool) for tool in body.tools]
    forced = [named] if named else list(tools) if choice == "required" else []
    return listed, {name: tools[name].function.parameters for name in forced}


def _as_given(tool: Tool) -> dict[str, Any]:
    return tool.model_dump(exclude_unset=True)


def _bad_choice(choice: Any) -> ApiError:
    expected = "none, auto, required or {'type': 'function', 'function': {'name': …}}"
    return ApiError(400, f"tool_choice is {shown(choice)}; expected {expected}", "tool_choice")


def _grammar(served: Served, body: ChatBody, forced: Mapping[str, Any], reasoning: str) -> Callable[[], Allowed] | None:
    """What makes the masks of an answer; None where it is free."""
    form = body.response_format
    if (form.type == "json_schema") != (form.json_schema is not None):
        where = "response_format.json_schema"
        raise ApiError(400, f"{where} goes with the type 'json_schema', which is {form.type!r}", where)
    try:
        if forced:
            return served.grammars.tool_calls(forced, reasoning, many=body.parallel_tool_calls)
        if form.type == "text":
            return None
        schema = JSON_OBJECT if form.json_schema is None else form.json_schema.schema_
        return served.grammars.json_answer(schema, reasoning)
    except ValueError as error:
        where = "tools" if forced else "response_format.json_schema.schema"
        raise ApiError(400, f"{where}: the schema cannot be followed: {error}", where) from None


def _common(body: Sampling, logprobs: int | None) -> dict[str, Any]:
    return dict(
        n=body.n,
        stop=body.stop,
        logprobs=logprobs,
        token_ids=body.return_token_ids,
        stream=body.stream,
        include_usage=body.stream_options.include_usage,
    )


def _sampling(served: Served, body: Sampling) -> dict[str, Any]:
    """The fields of the engine's requests that both kinds of completions give."""
    try:
        bias = {int(token): value for token, value in body.logit_bias.items()}
    except ValueError:
        raise ApiError(400, "logit_bias has a key that is no token id", "logit_bias") from None
    stops = [*([] if body.ignore_eos else sorted(served.end_ids)), *body.stop_token_ids]
    if len(stops) > MAX_STOP_IDS:
        raise ApiError(400, f"{len(stops)} tokens end an answer; expected at most {MAX_STOP_IDS}", "stop_token_ids")
    return dict(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        logit_bias=bias or None,
        min_new_tokens=body.min_tokens,
        stop_ids=tuple(dict.fromkeys(stops)),
    )


def _requests(
    served: Served,
    body: Sampling,
    id: str,
    prompts: Sequence[tuple[list[int], int]],
    sampling: Mapping[str, Any],
    where: str,
    grammar: Callable[[], Allowed] | None = None,
) -> list[Request]:
    """The engine's requests: choice i has the seed of the body + i."""
    seed = random.getrandbits(32) if body.seed is None else body.seed
    choices = [(prompt, room) for prompt, room in prompts for _ in range(body.n)]
    requests = [
        Request(
            f"{id}-{i}",
            prompt,
            room,
            seed=(seed + i) % 2**32,
            allowed=grammar() if grammar else None,
            **sampling,
        )
        for i, (prompt, room) in enumerate(choices)
    ]
    for request in requests[:: body.n]:
        length = len(request.tokens)
        if length + request.max_new_tokens > served.max_tokens:
            message = (
                f"the prompt has {length} tokens and {request.max_new_tokens} may follow; this server has room for "
            )
            message += f"{served.max_tokens}: shorten the prompt or lower max_tokens"
            raise ApiError(400, message, where, "context_length_exceeded")
        if error := request_error(request, served.vocab_size, served.max_tokens):
            raise ApiError(400, error, _param_of(error, where))
    return requests


def _where(body: Sampling, field: str) -> str:
    """The field that has the prompt."""
    return field if body.prompt_token_ids is None else "prompt_token_ids"


def _param_of(error: str, where: str) -> str:
    """The field that an error of the engine is about."""
    names = {"stop_ids": "stop_token_ids", "logit_bias": "logit_bias", "min_new_tokens": "min_tokens"}
    first = error.split(" ", 1)[0]
    return names.get(first, first if first in Sampling.model_fields else where)

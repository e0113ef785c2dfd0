"""The bodies of requests: OpenAI's fields, and those that other servers have added to them."""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from ling_jax.chat.json_text import read_json
from ling_jax.config import nearest
from ling_jax.messages import one_line, shown
from ling_jax.serve.errors import ApiError

MAX_CHOICES = 128  # of a request: prompts times n; our choice
MAX_TOP_LOGPROBS = 20  # OpenAI's
NAME = r"^[A-Za-z0-9_.-]{1,64}$"  # of a function; OpenAI's, and the dot of agents' tools
INT64 = 2**63
INT32 = 2**31

Token = Annotated[int, Field(ge=0, lt=INT32)]
Texts = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
AnyPrompt = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "array", "items": {"type": "integer"}},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            ]
        }
    ),
]
Messages = Annotated[
    list[Any],
    Field(min_length=1),
    WithJsonSchema(
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
                    "content": {"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}]},
                    "reasoning_content": {"type": "string"},
                    "tool_calls": {"type": "array"},
                    "tool_call_id": {"type": "string"},
                },
                "required": ["role"],
            },
        }
    ),
]
NAMED_TOOL = {
    "type": "object",
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
    "required": ["type", "function"],
}
Ignored = Any  # a field of OpenAI that changes no answer here


class Body(BaseModel):
    """An object whose fields have exactly these types; an unknown field is an error, and null is a missing one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Ignored = None


class Sampling(Body):
    """What both kinds of completions have."""

    model: str | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**30, description="0 and -1: all tokens")
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, le=100)
    frequency_penalty: float = Field(0.0, ge=0, le=0, description="0 only; repetition_penalty is there")
    presence_penalty: float = Field(0.0, ge=0, le=0, description="0 only; repetition_penalty is there")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field({}, max_length=1024)
    max_tokens: int | None = Field(None, ge=0, lt=2**30)
    min_tokens: int = Field(0, ge=0, lt=2**30)
    stop: Texts = Field([], max_length=16)
    stop_token_ids: list[Token] = Field([], max_length=48)
    ignore_eos: bool = False
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    prompt_token_ids: list[Token] | None = Field(None, min_length=1, description="instead of the prompt")
    return_token_ids: bool = False
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    safety_identifier: Ignored = None
    prediction: Ignored = None


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: AnyPrompt = None
    max_tokens: int = Field(16, ge=0, lt=2**30)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool = False
    best_of: int = Field(1, ge=1, le=1, description="1 only")


class Function(Body):
    name: str = Field(pattern=NAME)
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str = Field(pattern=NAME)


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    name: str = Field(pattern=NAME)
    description: str = ""
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = False


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class TemplateOptions(Body):
    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**30)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Tool] = Field([], max_length=128)
    tool_choice: Annotated[
        Any,
        WithJsonSchema({"anyOf": [{"enum": ["none", "auto", "required"]}, NAMED_TOOL]}),
    ] = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat(type="text")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: TemplateOptions = TemplateOptions()


class TokenizeBody(Body):
    """POST /tokenize: one of prompt and messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: list[Tool] = Field([], max_length=128)
    add_special_tokens: bool = Field(False, description="none are added, whatever it is")


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Token]


class InitBody(Body):
    """POST /v1/weights/init."""

    transport: Literal["checkpoint"] = "checkpoint"


class StartBody(Body):
    """POST /v1/weights/start."""

    mode: Literal["abort", "wait", "keep"] = "keep"


class UpdateBody(Body):
    """POST /v1/weights/update."""

    path: str = Field(min_length=1, max_length=4096)
    step: int | None = Field(None, ge=0, lt=INT64)
    version: int | None = Field(None, ge=0, lt=INT32)


class FinishBody(Body):
    """POST /v1/weights/finish."""

    in_flight: Literal["recompute", "keep"] = "recompute"


class EmptyBody(Body):
    """A POST without fields."""


INNER = (StreamOptions, Function, Tool, NamedFunction, JsonSchema, ResponseFormat, TemplateOptions)
INNER_FIELDS = frozenset(field.alias or name for kind in INNER for name, field in kind.model_fields.items())
B = TypeVar("B", bound=Body)


def read_body(kind: type[B], content: bytes) -> B:
    """The body of a request from its JSON.

    Raises ApiError 400 that names the field, what was found and what was expected.
    """
    try:
        value = read_json(content.decode() or "{}")
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is {shown(value)}; expected a JSON object")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _field_error(kind, error) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None


def _field_error(kind: type[Body], error: ValidationError) -> ApiError:
    """The first problem of a body, by the path of its field."""
    first = error.errors(include_url=False, include_context=False)[0]
    path, where = [part for part in first["loc"] if part != "[key]"], ""
    for part in path:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else part
    if first["type"] == "extra_forbidden":
        known = kind.model_fields if len(path) == 1 else INNER_FIELDS
        message = f"{one_line(where)} is unknown{nearest(str(path[-1]), known)}; remove it"
    elif first["type"] == "missing":
        message = f"{where} is missing"
    else:
        message = f"{one_line(where)} is {shown(first['input'])}: {first['msg']}"
    return ApiError(400, message, one_line(where))

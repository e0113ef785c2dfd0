"""The tools of an agent that works in a box: a shell, an editor, and the word that it is done.

What is wrong with a call is an observation, never an exception; only a sandbox that fails raises (`SandboxError`).
"""

import re
import time
from typing import Any, NamedTuple

from ling_jax.envs.base import Action, Message
from ling_jax.envs.tools.call import NOUN, ToolError, argument_error
from ling_jax.messages import nearest, one_line
from ling_jax.sandbox import Box, Result, SandboxError

MAX_CHARS = 4000  # our choice: of an observation; half from the head, half from the tail
MAX_COMMAND_BYTES = 1 << 16  # our choice; Linux refuses an argument of 128 KiB
MAX_FILE_BYTES = 1 << 20  # our choice: of a file that the editor opens or writes
MAX_CALLS = 8  # our choice: of a turn; the others are not carried out
TURN_SECONDS = 60.0  # our choice: of all commands of a turn together, well below a session's deadline
ENV = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}  # no compiled files; sets have one order
VARYING = re.compile(r"(?<=0x)[0-9a-f]{6,}|(?<= in )\d+\.\d+(?=s$)", re.MULTILINE)  # addresses, times of unittest
BASH, REPLACE, DONE = "execute_bash", "search_replace", "task_done"
NO_CALL = f"no tool was called: call {BASH}, {REPLACE}, or {DONE} when the work is done"

Call = dict[str, Any]  # {"name", "arguments"}


def _schema(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


TOOLS = (  # OpenAI schemas, for a task's `tools`
    _schema(BASH, "Runs a command with bash, in the work folder each time.", {"command": NOUN}),
    _schema(
        REPLACE,
        "Replaces a text that stands in a file exactly once. An empty search makes a new file.",
        {"path": NOUN, "search": NOUN, "replace": NOUN},
    ),
    _schema(DONE, "Says that the work is done.", {}),
)
_PARAMETERS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}


class Acted(NamedTuple):
    """What came of a call."""

    observation: str
    done: bool = False  # whether the agent says that its work is done
    error: str | None = None  # what was wrong with the call, for the log; the observation has it too


class Turn(NamedTuple):
    """What came of all calls of a turn."""

    observation: tuple[Message, ...]
    done: bool
    errors: tuple[str, ...]


def act(box: Box, call: Call, seconds: float | None = None, max_chars: int = MAX_CHARS) -> Acted:
    """Carries out a call of one of `TOOLS`; a command has `seconds` at most, and the box's own limit.

    Raises SandboxError where the sandbox fails.
    """
    if problem := _problem(call):
        return _refused(problem)
    name, arguments = call["name"], call["arguments"]
    if name == DONE:
        return Acted("", done=True)
    try:
        if name == REPLACE:
            return Acted(_replace(box, **arguments))
        return Acted(shown_result(_run(box, arguments["command"], seconds), max_chars))
    except ToolError as refused:
        return _refused(f"{name}: {refused}")


def act_turn(box: Box, action: Action, max_chars: int = MAX_CHARS) -> Turn:
    """Carries out the calls of a turn, in order, up to `task_done`; each gets a tool's message, and so does each error.

    A turn without a call gets a message that says what to call. Raises SandboxError where the sandbox fails.
    """
    errors = [f"{error}: write each call as the system message says" for error in action.errors]
    messages, until = [_said(f"error: {error}") for error in errors], time.monotonic() + TURN_SECONDS
    for number, call in enumerate(action.tool_calls):
        left = until - time.monotonic()
        if number >= MAX_CALLS:
            acted = _refused(f"only the first {MAX_CALLS} calls of a turn are carried out")
        elif left <= 0:
            acted = _refused(f"not carried out: the calls of a turn have {TURN_SECONDS:g} s together")
        else:
            acted = act(box, call, left, max_chars)
        if acted.done:
            return Turn(tuple(messages), True, tuple(errors))
        messages.append(_said(acted.observation))
        if acted.error is not None:
            errors.append(acted.error)
        if number >= MAX_CALLS or left <= 0:
            break
    if not messages:
        messages, errors = [_said(NO_CALL)], [NO_CALL]
    return Turn(tuple(messages), False, tuple(errors))


def shown_result(result: Result, max_chars: int = MAX_CHARS) -> str:
    """A command's result for the agent: how it ended where that was not well, and its output, capped.

    Addresses and the times that unittest takes become "...", so that the same command says the same again.
    """
    ends = {"exited": f"exit code {result.code}", "timeout": f"stopped after {result.seconds:.0f} s"}
    end = ends.get(result.status, f"stopped: {result.status}")
    parts = [] if (result.status, result.code) == ("exited", 0) else [end]
    for stream in (result.stdout, result.stderr):
        if text := VARYING.sub("...", stream.decode(errors="replace").rstrip("\n")):
            parts.append(capped(text, max_chars // 2 if result.stdout and result.stderr else max_chars))
    return "\n".join(parts) or "no output"


def capped(text: str, max_chars: int) -> str:
    """The text, or its head and tail with the number of characters that were left out between them."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


def _problem(call: Call) -> str | None:
    name, arguments = call["name"], call["arguments"]
    if name not in _PARAMETERS:
        return f"unknown tool {one_line(name)}{nearest(name, _PARAMETERS)}; there are {', '.join(_PARAMETERS)}"
    if error := argument_error(_PARAMETERS[name], arguments):
        return f"{name}: {error}"
    for argument, text in arguments.items():
        if "\0" in text:
            return f"{name}: argument {argument!r} holds a NUL character"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"{name}: argument {argument!r} holds half a surrogate pair, which no file can hold"
    return None


def _run(box: Box, command: str, seconds: float | None) -> Result:
    if len(command.encode()) > MAX_COMMAND_BYTES:
        raise ToolError(f"the command has more than {MAX_COMMAND_BYTES} bytes; write a file in several steps")
    return box.run(["bash", "-c", command], seconds=seconds, env=ENV)


def _replace(box: Box, path: str, search: str, replace: str) -> str:
    path = path.removeprefix("/work/")
    try:
        found = box.read(path)
        data = _edited(path, found, search, replace).encode()
        if len(data) > MAX_FILE_BYTES:
            raise ToolError(f"{one_line(path)} would have {len(data)} bytes; at most {MAX_FILE_BYTES}")
        box.write({path: data})
    except ValueError as error:  # the path leads out of the work folder
        raise ToolError(one_line(str(error))) from None
    except SandboxError as error:
        box.run(["true"])  # raises where the box is no more; else it was the path, or a full disk
        raise ToolError(one_line(str(error))) from None
    return f"{one_line(path)} was written"


def _edited(path: str, found: bytes | None, search: str, replace: str) -> str:
    path = one_line(path)
    if found is None:
        if search:
            raise ToolError(f"there is no file {path}; an empty search makes one")
        return replace
    if not search:
        raise ToolError(f"{path} is there already; an empty search makes a new file")
    try:
        text = found.decode()
    except UnicodeDecodeError:
        raise ToolError(f"{path} is not text in UTF-8") from None
    if (count := text.count(search)) != 1:
        raise ToolError(f"search stands {count} times in {path}; expected once")
    return text.replace(search, replace)


def _refused(error: str) -> Acted:
    return Acted(f"error: {error}", error=error)


def _said(content: str) -> Message:
    return {"role": "tool", "content": content}

"""A conversation on standard input and output: what `launch.generate --chat` says and reads around the model."""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

from ling_jax.chat.records import check_text
from ling_jax.checkpoint.folder import Loaded
from ling_jax.data.json_lines import read_objects
from ling_jax.envs import NAMES
from ling_jax.envs.sources import TaskSource, held_out_of
from ling_jax.files import read_object
from ling_jax.messages import one_line
from ling_jax.paths import as_path

Message = dict[str, Any]
COMMANDS = "/reset begins a new conversation, /exit or Ctrl-D ends"
EXAMPLES = 2  # that the banner shows; our choice


def chat(model: Loaded, path: str, answer: Callable[[list[Message]], Message]) -> None:
    """Answers a user's lines until /exit or the end of standard input; `path` is where the model was read.

    `answer` prints the answer to a conversation and returns its message. A line that it refuses (ValueError: no whole
    characters, no room in the context) is left out of the conversation, which goes on.
    """
    messages: list[Message] = []
    _say(banner(model, path))
    for line in lines():
        if line == "/exit":
            return
        if line == "/reset":
            messages = []
            _say("a new conversation")
        elif line.startswith("/") and len(line.split()) == 1:
            _say(f"no such command: {line}; {COMMANDS}")
        elif line:
            question = {"role": "user", "content": line}
            try:
                check_text(line, "the line")
                messages = [*messages, question, answer([*messages, question])]
            except ValueError as error:
                _say(f"error: {error}; shorten the line, or begin a new conversation with /reset")


def banner(model: Loaded, path: str) -> str:
    """What the model can be asked, and the commands."""
    lines = [f"{path}: {COMMANDS}."]
    if not model.is_chat:
        lines.append("It is a base model, not tuned for conversations: --prompt continues a text of yours.")
    examples = example_questions(path)
    if examples:
        lines.append("It was trained on tasks such as:")
    return "\n".join([*lines, *(f"  {example}" for example in examples)])


def example_questions(path: str) -> list[str]:
    """A held-out question of each kind of task that a run's config names, of those that need no tools.

    [] for a model that is no run's, and where its config or the files of its tasks cannot be read.
    """
    found: dict[str, None] = {}
    for source in _sources(_run_config(path)):
        try:
            found |= dict.fromkeys(_question(source))
        except (OSError, ValueError, KeyError, TypeError):  # a file that moved, or a config of another version
            continue
    return list(found)[:EXAMPLES]


def _run_config(path: str) -> dict[str, Any]:
    file = as_path(path) / "config.json"
    try:
        return read_object(file)
    except (OSError, ValueError):
        return {}


def _sources(node: Any) -> Iterator[dict[str, Any]]:
    """The tasks and conversations anywhere in a config."""
    if isinstance(node, dict):
        if "environment" in node:
            yield node
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from _sources(child)


def _question(source: dict[str, Any]) -> Iterator[str]:
    """The first question of a TaskSource or a ChatSource, as config.json has it; none of a task with turns of tools."""
    if source["environment"] in NAMES:  # other names are code of somebody else, which is not run for this
        names = ("environment", "difficulties", "path")
        tasks = held_out_of(TaskSource(**{name: source[name] for name in names if name in source}), 1)
        messages = [message for task in tasks if task.max_turns == 1 for message in task.messages]
    else:
        first = itertools.islice(read_objects(source["path"]), 1)
        messages = [message for _, record in first if not record.get("tools") for message in record["messages"]]
    for message in messages:
        if message["role"] == "user":
            yield one_line(message["content"])
            return


def lines() -> Iterator[str]:
    """The user's lines, stripped; behind a prompt, with the keys of readline, where a person types them."""
    if not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # which `check_text` refuses
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # noqa: F401  gives input() the arrow keys

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            print()
            return


def _say(text: str) -> None:
    """Beside the answers, which standard output gets alone."""
    print(text, file=sys.stderr, flush=True)

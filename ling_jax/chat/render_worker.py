"""The process of `ling_jax.chat.renderer`, which renders chat templates: a JSON line in, one out for each text.

It runs as a file and imports nothing of this package, so that it starts without JAX.
"""

import contextlib
import functools
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 1 << 30  # our choice: a text that doubles in a loop must not fill the machine
MAX_CHARACTERS = 16 << 20  # of one text; our choice: a conversation of a million tokens has a quarter of it
MAX_REPLY = 64 << 20  # characters of all texts of a request, which the caller holds at once; our choice


def main() -> None:
    """Reads requests from stdin and writes replies to stdout until stdin is closed."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # other output must not mix with the replies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, whose end closes our input
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends this process, also where the parent ignores the signal
    with contextlib.suppress(ValueError, OSError):  # macOS may refuse
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for line in sys.stdin.buffer:
        try:
            for reply in rendered(json.loads(line)):
                print(json.dumps(reply), file=replies, flush=True)  # text by text, as a sign of life
        except MemoryError:
            print(json.dumps(f"needs more than {MEMORY_BYTES >> 30} GiB of memory"), file=replies)
        except Exception as error:  # a template may raise anything that the sandbox allows
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            print(json.dumps(f"fails: {reason}"), file=replies)
        replies.flush()


def rendered(request: dict) -> Iterator[list | str]:
    """A reply [kept, added] for each of the request's `texts`, [number of messages, whether with generation prompt].

    A text is the first `kept` characters of the one before, all or none, and then `added`. A reply that is a string
    describes an error and is the last one. A text that takes more than `seconds` of CPU time ends this process by
    SIGPROF, also in C code.
    """
    before, replied = "", 0
    for count, prompt in request["texts"]:
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        try:
            template = compiled(request["source"])
            values = request["values"] | {"messages": request["messages"][:count], "add_generation_prompt": prompt}
            text = bounded(template.generate(values))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if text is None:
            yield f"writes more than {MAX_CHARACTERS >> 20} million characters"
            return
        text.encode()  # raises on half a surrogate pair here, not in a tokenizer
        kept = len(before) if text.startswith(before) else 0
        replied += len(text) - kept
        if replied > MAX_REPLY:
            yield f"writes more than {MAX_REPLY >> 20} million characters in the texts of one conversation"
            return
        yield [kept, text[kept:]]
        before = text


def bounded(parts: Iterator[str]) -> str | None:
    """The joined parts; None where they have more than `MAX_CHARACTERS`."""
    written, characters = [], 0
    for part in parts:
        characters += len(part)
        if characters > MAX_CHARACTERS:
            return None
        written.append(part)
    return "".join(written)


@functools.lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    """A template in Jinja's sandbox, with the filters and globals of `transformers`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(source)


class Generation(Extension):
    """{% generation %} blocks, which mark the assistant's text; here they only write their content."""

    tags = frozenset({"generation"})

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON for templates; Jinja's own filter would escape HTML characters such as "<"."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: str) -> NoReturn:
    """The function `raise_exception` of templates."""
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    main()

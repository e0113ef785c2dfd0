"""Programs that play episodes: each is a few lines behind a common beginning, which asks without OpenAI's client."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from ling_jax.rl.errors import ErrorLog
from ling_jax.serve.agents import AgentCollector, AgentOptions
from tests.helpers.rl_run import MODEL
from tests.helpers.tiny_collector import PARAMS, READER, SLOTS

BEGINNING = """
import json, os, sys, time, urllib.error, urllib.request
from concurrent.futures import ThreadPoolExecutor

task = json.load(sys.stdin)
messages = task["messages"]

def ask(messages=messages, **fields):
    body = json.dumps({"model": "any", "messages": messages, "max_tokens": 12} | fields).encode()
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["message"]

"""


def write_agent(folder: Path, lines: str) -> tuple[str, ...]:
    """The command of a program with these lines."""
    path = folder / "agent.py"
    path.write_text(BEGINNING + lines)
    return (sys.executable, str(path))


def options_of(command, *, workdir=None, samples="concat", branches="main", max_calls=8, share=1.0) -> AgentOptions:
    return AgentOptions(command, max_calls, samples, branches, share, ErrorLog(workdir))


@contextlib.contextmanager
def agent_collector(options: AgentOptions, **more) -> Iterator[AgentCollector]:
    """A collector with the weights of `tiny_collector`, that generates."""
    with AgentCollector(MODEL, READER, SLOTS, options=options, **more) as collector, collector.generating():
        collector.load(PARAMS)
        yield collector

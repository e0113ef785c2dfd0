"""A tiny model behind the real server, in a thread of the test or in a process of its own."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import openai

from ling_jax import data
from ling_jax.chat.template import TOOLS_BLOCK, XML_FORMAT, ChatTemplate
from ling_jax.checkpoint import save_hf
from ling_jax.checkpoint.folder import Loaded
from ling_jax.engine import EXACT_TILE, Engine, memory_for
from ling_jax.serve.app import Server
from ling_jax.serve.http import Keys, Limits
from ling_jax.serve.run import in_thread, prepare
from tests.helpers.faults import ROOT
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(
    num_layers=2, first_dense_layers=2, vocab_size=640, max_length=2048, compute_dtype="float32", remat="none"
)
NAME = "tiny"
HEADERS = {"Content-Type": "application/json"}


@functools.cache
def tokenizer():
    """Of few tokens for what the chat template says."""
    return data.train_bpe([TOOLS_BLOCK, XML_FORMAT, "<role>SYSTEM</role>detailed thinking off some words"] * 2, 630)


@functools.cache
def params(seed: int = 0):
    return random_params(CONFIG, seed=seed, dtype="float32")


def write_model(folder: Path, seed: int = 0) -> Path:
    """A Hugging Face folder of the tiny model."""
    save_hf(params(seed), CONFIG, folder)
    data.save_tokenizer(tokenizer(), folder)
    return folder


@dataclasses.dataclass
class Running:
    """A server that answers, and how to ask it."""

    server: Server
    url: str
    http: httpx2.Client

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def post(self, path: str, body: Any, **more: Any) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(self.url + path, content=content, headers=HEADERS | more.pop("headers", {}))

    def get(self, path: str) -> httpx2.Response:
        return self.http.get(self.url + path)

    def wait_until_busy(self, seconds: float = 20) -> None:
        """Raises AssertionError where no request comes to the engine."""
        end = time.monotonic() + seconds
        while not self.server.engine.slots_in_use:
            assert time.monotonic() < end
            time.sleep(0.001)

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Raises AssertionError where the engine keeps a request."""
        end = time.monotonic() + seconds
        while (left := (self.server.pending, self.server.engine.slots_in_use, self.server.engine.ids)) != (0, 0, set()):
            assert time.monotonic() < end, left
            time.sleep(0.01)


def tiny_server(
    *, slots: int = EXACT_TILE, template: Any = None, limits: Limits | None = None, keys: Keys | None = None
) -> Server:
    """A server of the tiny model, which is exact."""
    engine = Engine(
        CONFIG,
        slots=slots,
        memory_bytes=memory_for(CONFIG, slots=slots, max_tokens=CONFIG.max_length),
        row_tile=EXACT_TILE,
    )
    engine.load(params(), version=0)
    engine.warm_up()
    model = Loaded(params(), CONFIG, tokenizer(), template or ChatTemplate())
    return Server(engine, prepare(model, engine, NAME), limits or Limits(), keys or Keys())


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Running]:
    """A server in a thread; `options` are those of `tiny_server`."""
    server = tiny_server(**options)
    with in_thread(server) as url, httpx2.Client(timeout=60) as http:
        yield Running(server, url, http)


@contextlib.contextmanager
def process(
    folder: Path, *flags: str, env: dict[str, str] | None = None, program: Sequence[str] = ("-m", "launch.serve")
) -> Iterator[tuple[subprocess.Popen, str]]:
    """(`launch.serve` of a model's folder, its address); killed at the end where it has not ended."""
    command = [sys.executable, *program, f"--model={folder}", "--port=0", *flags]
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | (env or {})
    )
    try:
        seen = []
        for line in started.stdout:
            seen.append(line)
            if address := re.search(r"serving \S+ at (http://\S+)", line):
                break
        else:
            raise AssertionError("".join(seen) + started.stderr.read())
        yield started, address[1]
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGKILL)
        started.wait()
        started.stdout.close()
        started.stderr.close()

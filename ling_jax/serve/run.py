"""A server on its socket, from start to end."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import uvicorn
from tokenizers import Tokenizer

from ling_jax.chat.folder_template import FolderTemplate
from ling_jax.chat.template import ChatTemplate
from ling_jax.chat.thinking import with_thinking
from ling_jax.checkpoint.folder import Loaded
from ling_jax.data.token_bytes import token_bytes
from ling_jax.data.tokenizer import largest_id
from ling_jax.engine.engine import Engine
from ling_jax.messages import error_text, print_last
from ling_jax.serve.app import Server
from ling_jax.serve.asked import Served
from ling_jax.serve.grammar import Grammars
from ling_jax.serve.http import Keys, Limits

CRASH_SECONDS = 2.0  # in which /health says that the engine has ended; our choice
CRASHED = 1  # exit code


def prepare(model: Loaded, engine: Engine, name: str, *, thinking: str = "default", effort: str = "") -> Served:
    """What requests to the model are translated by. Raises ValueError where nothing ends its answers."""
    template = with_thinking(model.template, thinking, effort)
    return served_of(model.tokenizer, template, model.end_ids, model.config.vocab_size, engine.plan.max_tokens, name)


def served_of(
    tokenizer: Tokenizer,
    template: ChatTemplate | FolderTemplate,
    end_ids: frozenset[int],
    vocab_size: int,
    max_tokens: int,
    name: str,
) -> Served:
    """What requests are translated by, with a copy of the tokenizer; `max_tokens` is the longest context."""
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Served(
        name=name,
        tokenizer=tokenizer,
        template=template,
        end_ids=end_ids,
        vocab_size=vocab_size,
        max_tokens=max_tokens,
        grammars=Grammars(tokenizer, vocab_size, end_ids),
        token_bytes=_token_bytes(tokenizer),
    )


@contextlib.contextmanager
def in_thread(server: Server) -> Iterator[str]:
    """The address at which a thread of this process serves until the block ends."""
    http = uvicorn.Server(_uvicorn_config(server, grace_seconds=1))
    listener = bind("127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(http.serve([listener])), name="server", daemon=True)
    thread.start()
    while not http.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        http.should_exit = True
        thread.join()
        asyncio.run(server.service.close())


def _uvicorn_config(server: Server, grace_seconds: int) -> uvicorn.Config:
    return uvicorn.Config(
        server.app(),
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=grace_seconds,
    )


def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every id; of a tokenizer that is not byte-level those of the decoded token."""
    try:
        return token_bytes(tokenizer)[0]
    except ValueError:
        ids = range(largest_id(tokenizer) + 1)
        return [tokenizer.decode([id], skip_special_tokens=False).encode() for id in ids]


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, which does not listen yet. Raises OSError that names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small parts at once (TCP_NODELAY) where the protocol is named.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; name another --host or --port") from None
    return listener


def run(
    models: Sequence[tuple[Engine, Served]], limits: Limits, keys: Keys, listener: socket.socket, *, grace_seconds: int
) -> None:
    """Serves one model, or a second one to compare with it, until a signal; the signal is raised again once answers
    under way have ended.

    Where an engine fails, its /health says so for a moment, then the process ends with the reason and exit code 1.
    """
    crash = asyncio.run(_serve(models, limits, keys, listener, grace_seconds))
    if crash is not None:
        print_last(f"error: the engine has ended: {error_text(crash)}")
        os._exit(CRASHED)  # a thread of the engine may hang


async def _serve(models, limits, keys, listener, grace_seconds: int) -> BaseException | None:
    """Serves until the end; returns why an engine ended, None where a signal came."""
    server = compared = None
    for engine, served in reversed(models):
        server, compared = Server(engine, served, limits, keys, server), server
    http = uvicorn.Server(_uvicorn_config(server, grace_seconds))
    host, port = listener.getsockname()[:2]
    ends = [asyncio.wrap_future(one.service.ended) for one in (server, compared) if one]

    async def watch() -> None:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(CRASH_SECONDS)
        http.should_exit = http.force_exit = True

    async def report() -> None:
        while not http.started:
            await asyncio.sleep(0.01)
        print(f"serving {server.served.name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

    watching = asyncio.gather(watch(), report())
    await http.serve([listener])
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
    if crashes := [end.result() for end in ends if end.done()]:
        return crashes[0]
    for one in (server, compared):
        if one:
            await one.service.close()
    return None

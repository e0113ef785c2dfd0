"""Answers of a served model, over HTTP in the protocol of OpenAI's clients (httpx2, the extra `judge`)."""

import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ling_jax.chat.tool_calls import END_THINK, THINK, render_call
from ling_jax.config import nearest
from ling_jax.engine.text import Completion
from ling_jax.messages import error_text, one_line

Record = Mapping[str, Any]
ATTEMPTS = 5  # of a request; our choice
PAUSE = 0.5  # seconds before the second attempt, doubled before each later one; our choice
BUSY = (408, 429, 500, 502, 503, 504)  # statuses after which the same request may succeed
ENDED = {"stop": "end", "tool_calls": "end"}


class EndpointError(Exception):
    """A served model does not answer."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A model behind a URL such as http://127.0.0.1:8000/v1; `key` "" asks without one."""

    url: str
    model: str
    key: str = ""
    timeout: float = 600.0  # seconds of a request; our choice

    def check(self) -> None:
        """Raises ValueError on a malformed URL, a key that is refused or a model that is not served, and OSError where
        nothing answers."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--endpoint={self.url}; expected a URL such as http://127.0.0.1:8000/v1")
        try:
            with self.client() as client:
                response = client.get(f"{self.url.rstrip('/')}/models")
        except _httpx().HTTPError as error:
            raise OSError(
                f"--endpoint={self.url} does not answer: {error_text(error)}; start it, or correct it"
            ) from None
        if response.status_code != 200:
            raise ValueError(f"{response.url} answers {response.status_code}: {one_line(response.text)}")
        names = [model["id"] for model in response.json()["data"]]
        if self.model not in names:
            found = f"--model={self.model}{nearest(self.model, names)}"
            raise ValueError(f"{found} is not served by {self.url}, which has {', '.join(names[:8])}")

    def client(self) -> Any:
        """An HTTP client with the key."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return _httpx().Client(headers=headers, timeout=self.timeout)


def endpoint_answers(
    endpoint: Endpoint, records: Sequence[Record], seeds: Sequence[int], *, raw: bool, parallel: int, **sampling: Any
) -> Iterator[Completion]:
    """An answer to each record with its seed, in their order, `parallel` at a time.

    `sampling` are fields of the body, such as max_tokens. `raw` asks for the continuation of `prompt`, else it is a
    user's message. Reasoning stands as <think>…</think> before the content. Raises EndpointError where a request is
    refused, or fails `ATTEMPTS` times.
    """
    with endpoint.client() as client, concurrent.futures.ThreadPoolExecutor(parallel) as pool:

        def answer(record: Record, seed: int) -> Completion:
            path, body = _request(endpoint, record, raw)
            return _completion(_post(client, endpoint.url.rstrip("/") + path, body | sampling | {"seed": seed}))

        futures = [pool.submit(answer, *item) for item in zip(records, seeds, strict=True)]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _request(endpoint: Endpoint, record: Record, raw: bool) -> tuple[str, dict[str, Any]]:
    if raw and "prompt" in record:
        return "/completions", {"model": endpoint.model, "prompt": record["prompt"]}
    messages = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
    tools = {"tools": list(record["tools"])} if record.get("tools") else {}
    return "/chat/completions", {"model": endpoint.model, "messages": [_as_openai(m) for m in messages]} | tools


def _as_openai(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of `chat.template` in OpenAI's form."""
    found = {key: value for key, value in message.items() if key not in ("reasoning", "tool_calls")}
    if message.get("reasoning") is not None:
        found["reasoning_content"] = message["reasoning"]
    if calls := message.get("tool_calls"):
        functions = [{"name": call["name"], "arguments": json.dumps(call["arguments"])} for call in calls]
        found["tool_calls"] = [{"type": "function", "function": function} for function in functions]
    return found


def _post(client: Any, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    for attempt in range(ATTEMPTS):
        try:
            response = client.post(url, json=body)
        except _httpx().HTTPError as error:
            problem = f"{url}: {error_text(error)}"
        else:
            if response.status_code == 200:
                return response.json()
            problem = f"{url} answers {response.status_code}: {one_line(response.text)}"
            if response.status_code not in BUSY:
                break
        time.sleep(PAUSE * 2**attempt)
    raise EndpointError(problem)


def _completion(body: Mapping[str, Any]) -> Completion:
    choice = body["choices"][0]
    ended = ENDED.get(choice["finish_reason"], choice["finish_reason"])
    if "message" not in choice:
        return Completion(choice["text"], [], [], ended)
    message = choice["message"]
    reasoning, text = message.get("reasoning_content"), message.get("content") or ""
    for call in message.get("tool_calls") or ():
        function = call["function"]
        text += "\n" + render_call({"name": function["name"], "arguments": json.loads(function["arguments"])}, "xml")
    return Completion(f"{THINK}{reasoning}{END_THINK}{text}" if reasoning else text, [], [], ended)


def _httpx() -> Any:
    try:
        import httpx2
    except ImportError:
        raise ValueError("--endpoint needs httpx2: pip install 'ling-jax[judge]'") from None
    return httpx2

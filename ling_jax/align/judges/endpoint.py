"""A judge behind an endpoint: chat completions in the form of OpenAI, over httpx2 (the extra `judge`)."""

import concurrent.futures
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ling_jax.align.judges.forms import Question
from ling_jax.align.judges.judgements import Reply
from ling_jax.files import parse_object
from ling_jax.messages import error_text, nearest

MAX_PARALLEL = 16  # questions at once; our choice
MAX_ATTEMPTS = 4  # of a question; our choice
PAUSE = 0.5  # seconds before the second attempt, doubled before each later one; our choice
MAX_BYTES = 1 << 20  # of a response; our choice
BUSY = (408, 409, 429, 500, 502, 503, 504)  # statuses after which the same request may succeed


class EndpointJudge:
    """Replies of `model` at `base_url`; `timeout` seconds for each question, all its attempts together."""

    def __init__(self, base_url: str, model: str, key: str, *, timeout: float, max_tokens: int):
        self._url, self._model, self._key = base_url.rstrip("/"), model, key
        self._timeout, self._max_tokens = timeout, max_tokens

    def __call__(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply each, in order; whatever goes wrong is the error of its reply."""
        with self._client() as client, concurrent.futures.ThreadPoolExecutor(MAX_PARALLEL) as pool:
            return list(pool.map(lambda question: self._reply(client, question.text), questions))

    def check(self) -> None:
        """Raises ValueError where the endpoint refuses the key or lists models without this one, OSError where it
        cannot be reached. One without a list of models is taken as it is."""
        httpx, url = _httpx(), f"{self._url}/models"
        try:
            with self._client() as client:
                status, body, _ = _request(client, "GET", url, None, time.monotonic() + self._timeout)
        except (httpx.HTTPError, OSError) as error:
            raise OSError(
                f"judge.base_url: {url} cannot be reached: {error_text(error)}; start it, or correct it"
            ) from None
        if status in (401, 403):
            raise ValueError(f"{url} answers {status}: it refuses the key of judge.key_variable")
        names = _model_names(body) if status == 200 else []
        if names and self._model not in names:
            found = f"{self._model!r}{nearest(self._model, names)}"
            raise ValueError(f"judge.model is {found}; {url} lists {', '.join(names[:8])}")

    def _reply(self, client, prompt: str) -> Reply:
        deadline, error = time.monotonic() + self._timeout, ""
        for attempt in range(MAX_ATTEMPTS):
            try:
                status, body, wait = self._ask(client, prompt, deadline)
            except (_httpx().HTTPError, OSError) as failure:
                status, wait, error = 0, 0.0, error_text(failure)
            else:
                if status == 200:
                    return _read(body)
                error = f"the endpoint answers {status}: {' '.join(body[:200].decode(errors='replace').split())}"
            pause = max(wait, PAUSE * 2**attempt)
            if (status and status not in BUSY) or time.monotonic() + pause >= deadline:
                break
            time.sleep(pause)
        return Reply("", error)

    def _ask(self, client, prompt: str, deadline: float) -> tuple[int, bytes, float]:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }
        return _request(client, "POST", f"{self._url}/chat/completions", body, deadline)

    def _client(self):
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return _httpx().Client(headers=headers, trust_env=True)


def _request(
    client, method: str, url: str, body: Mapping[str, Any] | None, deadline: float
) -> tuple[int, bytes, float]:
    """(status, body, seconds that the endpoint asks to wait). Raises an error of httpx or TimeoutError."""
    left = max(deadline - time.monotonic(), 0.001)
    with client.stream(method, url, json=body, timeout=left) as response:
        content = b""
        for chunk in response.iter_bytes():
            content += chunk
            if time.monotonic() > deadline:
                raise TimeoutError("the response did not end in time")
            if len(content) > MAX_BYTES:
                raise OSError(f"the response is longer than {MAX_BYTES} bytes")
        return response.status_code, content, _seconds(response.headers.get("Retry-After", ""))


def _read(body: bytes) -> Reply:
    """The text of a chat completion that was not cut off."""
    try:
        choice = parse_object(body, "the response")["choices"][0]
        text, reason = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return Reply("", f"the response is no chat completion: {error_text(error)}")
    if not isinstance(text, str):
        return Reply("", "the response is no chat completion: its content is no text")
    return Reply("", "the judge's reply passes judge.max_tokens") if reason == "length" else Reply(text)


def _model_names(body: bytes) -> list[str]:
    """Of a list of models; none where it has another form."""
    try:
        return [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, LookupError, TypeError):
        return []


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _httpx():
    try:
        import httpx2
    except ImportError:
        raise ValueError("judge.kind is 'endpoint', which needs httpx2: pip install 'ling-jax[judge]'") from None
    return httpx2

"""A chat-completions endpoint on this machine, whose answers a test writes."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Response(NamedTuple):
    text: str = ""  # of the completion
    status: int = 200
    body: str | None = None  # in the place of the completion
    wait: float = 0.0  # seconds before it comes
    headers: tuple[tuple[str, str], ...] = ()
    finish: str = "stop"


class Endpoint:
    """`respond(prompt, attempt)` gives the response to a prompt; attempts of the same prompt count from 0."""

    def __init__(self, respond: Callable[[str, int], Response], models=("judge-1",), models_status: int = 200):
        self.respond, self.models, self.models_status = respond, models, models_status
        self.prompts: list[str] = []
        self.keys: set[str | None] = set()
        self.url = ""

    def models_body(self) -> str:
        return json.dumps({"object": "list", "data": [{"id": name} for name in self.models]})

    def completion(self, request: dict) -> Response:
        prompt = request["messages"][0]["content"]
        self.prompts.append(prompt)
        return self.respond(prompt, self.prompts.count(prompt) - 1)


@contextlib.contextmanager
def served(endpoint: Endpoint) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            endpoint.keys.add(self.headers.get("Authorization"))
            self._send(Response(status=endpoint.models_status, body=endpoint.models_body()))

        def do_POST(self):
            endpoint.keys.add(self.headers.get("Authorization"))
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            response = endpoint.completion(request)
            stopped.wait(response.wait)
            self._send(response)

        def _send(self, response: Response) -> None:
            choice = {"message": {"role": "assistant", "content": response.text}, "finish_reason": response.finish}
            body = (json.dumps({"choices": [choice]}) if response.body is None else response.body).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(response.status)
                for name, value in [("Content-Length", str(len(body))), *response.headers]:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    stopped = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()

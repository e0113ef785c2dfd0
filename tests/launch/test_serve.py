"""The program: a process that serves, and how it ends."""

import json
import signal
import subprocess
import threading
import time

import httpx2
import openai
import pytest

from tests.helpers.refusals import run_each
from tests.helpers.served import process, write_model

MESSAGES = [{"role": "user", "content": "some words"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "hf")


def test_it_serves_until_sigterm_and_ends_the_answers_under_way(folder):
    with process(folder, "--name=mine", "--context=1024", "--api_key_variable=MY_KEY", env={"MY_KEY": "k"}) as (
        server,
        url,
    ):
        curl = ["curl", "-sS", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json"]
        body = json.dumps({"model": "mine", "messages": MESSAGES, "max_tokens": 4})
        answered = subprocess.run([*curl, "-H", "Authorization: Bearer k", "-d", body], capture_output=True, check=True)
        assert json.loads(answered.stdout)["usage"]["completion_tokens"] == 4
        refused = subprocess.run([*curl, "-d", body], capture_output=True, check=True)
        assert json.loads(refused.stdout)["error"]["code"] == "invalid_api_key"
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        chunks = client.chat.completions.create(
            model="mine", messages=MESSAGES, max_tokens=700, stream=True, extra_body={"ignore_eos": True}
        )
        next(chunks)
        server.send_signal(signal.SIGTERM)
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
        assert server.wait(20) == 128 + signal.SIGTERM
        out, err = server.stdout.read(), server.stderr.read()
        assert err.endswith("SIGTERM: ended; the same command starts again\n") and "words" not in out + err
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/health")


@pytest.mark.slow
def test_answers_that_last_longer_than_the_grace_are_cut(folder):
    with process(folder, "--grace_seconds=1") as (server, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        fields = dict(model="hf", messages=MESSAGES, max_tokens=1900, extra_body={"ignore_eos": True})
        failed = []

        def read():
            try:
                list(client.chat.completions.create(**fields, n=64, logprobs=True, top_logprobs=20, stream=True))
            except (openai.APIError, httpx2.HTTPError) as error:
                failed.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        while not httpx2.get(f"{url}/health").json()["slots_in_use"]:
            time.sleep(0.01)
        start = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 128 + signal.SIGTERM and time.monotonic() - start < 10
        reader.join()
        assert failed


CRASH = """
import sys
from ling_jax.engine import Engine
steps = Engine.step
def step(engine):
    if engine.steps > 3:
        raise MemoryError("no more of it")
    return steps(engine)
Engine.step = step
sys.argv = ["launch.serve", *sys.argv[1:]]
import runpy
runpy.run_module("launch.serve", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", ["", "/compare"])
def test_a_crash_of_an_engine_fails_health_and_ends_the_process_with_the_reason(folder, path):
    with process(folder, f"--compare={folder}", program=["-c", CRASH]) as (server, address):
        url = address + path
        answered = httpx2.post(
            f"{url}/v1/completions", json={"prompt": "some", "max_tokens": 200, "ignore_eos": True}, timeout=30
        )
        assert answered.status_code == 503 and "the engine has ended: MemoryError" in answered.text
        assert httpx2.get(f"{url}/health").status_code == 503
        assert server.wait(20) == 1
        assert server.stderr.read().endswith("error: the engine has ended: MemoryError: no more of it\n")


def test_mistakes_are_one_line_before_the_model_is_loaded(folder):
    mistakes = {
        f"--model={folder} --api_key_variable=NOT_SET": "this environment variable is not set or empty",
        f"--model={folder} --host=no.such.host. --api_key_variable=PATH": "cannot listen on no.such.host.",
        "--model=absent": "it does not exist",
        f"--model={folder} --compare=absent": "error: absent holds neither",
        f"--model={folder} --slots=8 --memory_gb=0.00001": "expected at least 1 slot",
        f"--model={folder} --effort=\thigh": "effort is",
    }
    commands = [flags.split(" ") for flags in mistakes]
    for message, done in zip(mistakes.values(), run_each("launch.serve", commands), strict=True):
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done


@pytest.mark.slow
def test_a_port_in_use_is_named(folder):
    with process(folder) as (_, url):
        (done,) = run_each("launch.serve", [[f"--model={folder}", f"--port={url.rpartition(':')[2]}"]])
        assert done.returncode == 2 and "Address already in use; name another --host" in done.stderr

"""The page on serving, run as it stands there against the tiny model."""

import re
import subprocess

from tests.helpers.served import NAME, ROOT

PAGE = (ROOT / "docs" / "serving.md").read_text()


def blocks(kind: str, server) -> list[str]:
    """The page's blocks of a kind, with the address and the model of the server."""
    here = PAGE.replace("http://127.0.0.1:8000", server.url).replace("kpop", NAME)
    return re.findall(rf"```{kind}\n(.*?)```", here, re.S)


def test_the_clients_lines_run(server, capsys):
    names: dict = {"messages": [{"role": "user", "content": "some words"}]}
    asked, recorded, grouped = blocks("python", server)
    exec(asked, names)
    assert capsys.readouterr().out
    exec(recorded, names)
    assert len(names["tokens"]) == len(names["logps"]) == sum(count for _, count in names["versions"]) > 0
    exec(grouped, names)
    names["client"].chat.completions.create(model=NAME, messages=names["messages"], max_tokens=4)
    assert "trip-1" in server.get("/v1/sessions").text


def test_curl_runs(server):
    (command,) = [block for block in blocks("text", server) if block.startswith("curl")]
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert '"object":"chat.completion"' in done.stdout


def test_the_errors_of_the_page_are_those_of_the_server(server):
    lines = [line for line in PAGE.splitlines() if line.startswith("400 ")]
    bodies = [{"temprature": 1}, {"messages": [{"role": "usr", "content": "x"}]}]
    for line, body in zip(lines, bodies, strict=True):
        response = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]} | body)
        assert f"{response.status_code} {response.json()['error']['message']}" == line


def test_every_field_and_flag_of_the_page_is_there():
    from ling_jax.serve.protocol import ChatBody, CompletionBody

    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (?!.*`--)", PAGE.partition("## Errors")[0], re.M)
    fields = {name for row in rows for name in re.findall(r"\w+", row)}
    assert len(fields) > 20 and not fields - {*ChatBody.model_fields, *CompletionBody.model_fields}
    flags = set(re.findall(r"`--(\w+)", PAGE.partition("## Evaluation")[0]))
    source = (ROOT / "launch" / "serve.py").read_text()
    assert flags and all(f'"{flag}"' in source for flag in flags)

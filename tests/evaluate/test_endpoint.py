"""A served model is evaluated over HTTP as the same model is here."""

import json

import pytest

from ling_jax.evaluate.endpoint import Endpoint, EndpointError, endpoint_answers
from tests.helpers.programs import output_of
from tests.helpers.served import NAME, running, write_model

RECORDS = [{"prompt": "some words", "answer": "x"}, {"messages": [{"role": "user", "content": "words"}], "answer": "x"}]


@pytest.fixture(scope="module")
def server():
    with running() as found:
        yield found
        found.wait_until_idle()


def answers(server, records=RECORDS, **more):
    endpoint = Endpoint(f"{server.url}/v1", NAME)
    sampling = dict(max_tokens=20, temperature=0.7) | more
    return list(endpoint_answers(endpoint, records, range(len(records)), raw=False, parallel=2, **sampling))


def test_answers_come_in_order_and_are_those_of_the_server(server):
    found = answers(server, RECORDS * 3)
    assert [answer.ended for answer in found] == ["length"] * 6 and len({answer.text for answer in found}) == 6
    body = {"messages": [{"role": "user", "content": "some words"}], "max_tokens": 20, "temperature": 0.7, "seed": 2}
    wanted = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    assert found[2].text == wanted and found == answers(server, RECORDS * 3)


def test_what_the_server_refuses_is_said(server):
    with pytest.raises(EndpointError, match=r"answers 400: .*temperature is 3"):
        answers(server, temperature=3)
    with pytest.raises(ValueError, match=r"--model=tin, did you mean 'tiny'. is not served"):
        Endpoint(f"{server.url}/v1", "tin").check()
    with pytest.raises(ValueError, match="expected a URL"):
        Endpoint("localhost:8000", NAME).check()
    with pytest.raises(OSError, match="does not answer: ConnectError"):
        Endpoint("http://127.0.0.1:9/v1", NAME).check()
    Endpoint(f"{server.url}/v1", NAME).check()


@pytest.mark.slow
def test_the_program_says_the_same_of_a_folder_and_of_a_server(server, tmp_path):
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(record | {"answer": "?"}) for record in RECORDS))
    common = ["--task=generate", f"--data={tmp_path}/tasks.jsonl", "--samples=3", "--temperature=0.7"]
    common += ["--max_new_tokens=20", "--batch_size=64", "--k=1,3"]
    folder = write_model(tmp_path / "hf")
    # The tiny model declares no end of turn, so its prompts would be plain text there.
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    here = output_of("launch.evaluate", f"--model={folder}", f"--out={tmp_path}/here", *common)
    there = output_of(
        "launch.evaluate", f"--model={NAME}", f"--endpoint={server.url}/v1", f"--out={tmp_path}/there", *common
    )
    assert there.splitlines()[-6:] == here.splitlines()[-6:]
    samples = [[json.loads(line) for line in (tmp_path / name / "samples.jsonl").open()] for name in ("here", "there")]
    assert [sample["text"] for sample in samples[0]] == [sample["text"] for sample in samples[1]]

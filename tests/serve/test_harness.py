"""lm-eval, which knows nothing of this project, evaluates the server."""

import json
import os
import shutil
import subprocess

import pytest

from tests.helpers.served import NAME

needs_harness = pytest.mark.skipif(shutil.which("lm_eval") is None, reason="pip install 'ling-jax[harness]'")
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = 'output_type: multiple_choice\ndoc_to_choice: ["call", "tool of"]\ndoc_to_target: label\n'
WRITE = """output_type: generate_until
doc_to_target: "{{label}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def tasks(tmp_path):
    """A folder with a task of choices and one of generation."""
    lines = [json.dumps({"question": f"some words {i}", "label": i % 2}) for i in range(6)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    for name, text in (("choose", CHOICE), ("write", WRITE)):
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, folder=tmp_path) + text)
    return tmp_path


def evaluate(server, folder, model: str, path: str, tasks: str, *more: str) -> dict:
    arguments = f"model={NAME},base_url={server.url}{path},num_concurrent=4,max_retries=1"
    command = ["lm_eval", "run", "--model", model, "--model_args", arguments, "--tasks", tasks, *more]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    env = {"OPENAI_API_KEY": "none", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    (found,) = (folder / "out").rglob("results_*.json")
    return json.loads(found.read_text())["results"]


@needs_harness
@pytest.mark.slow
def test_log_likelihoods_and_completions(server, tasks):
    results = evaluate(server, tasks, "local-completions", "/v1/completions", "choose,write")
    assert 0 <= results["choose"]["acc,none"] <= 1 and results["write"]["exact_match,none"] == 0
    samples = [json.loads(line) for path in (tasks / "out").rglob("samples_choose_*") for line in path.open()]
    assert len(samples) == 6
    for sample in samples:
        for (logp, _), choice in zip(sample["filtered_resps"], ("call", "tool of"), strict=True):
            prompt = f"{sample['doc']['question']} {choice}"
            scored = server.client().completions.create(model=NAME, prompt=prompt, max_tokens=0, echo=True, logprobs=0)
            count = len(server.post("/tokenize", {"prompt": sample["doc"]["question"]}).json()["tokens"])
            assert float(logp) == pytest.approx(sum(scored.choices[0].logprobs.token_logprobs[count:]), abs=1e-4)


@needs_harness
@pytest.mark.slow
def test_chats(server, tasks):
    results = evaluate(
        server, tasks, "local-chat-completions", "/v1/chat/completions", "write", "--apply_chat_template"
    )
    assert results["write"]["exact_match,none"] == 0

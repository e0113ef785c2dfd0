import dataclasses
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from ling_jax import data, model
from ling_jax.checkpoint import save_hf
from ling_jax.evaluate.viewer import read_trajectories
from tests.helpers.faults import ROOT
from tests.helpers.refusals import run_each
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(vocab_size=300, num_layers=2, compute_dtype="float32", remat="none", max_length=64)
PARAMS = random_params(CONFIG, dtype="float32")
TOKENIZER = data.train_bpe(["some words, and some more words"], 270)
TEXTS = ["some words, and some more words " * 8, "others", "naïve 日本"]
QUESTIONS = [
    {"prompt": "some ", "choices": ["words", "more words, and more", "x"], "answer": 1, "id": "first"},
    {"messages": [{"role": "user", "content": "and?"}], "choices": ["yes", "no"], "answer": 0},
]
TASKS = [{"prompt": "some ", "answer": "x"}, {"prompt": "and", "answer": "y"}, {"prompt": "more", "answer": "z"}]
VERIFIER = """
def verifier(text, record):
    if record["answer"] == "y":
        raise RuntimeError("no verdict")
    return record["answer"] == "x"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    save_hf(PARAMS, CONFIG, folder / "hf")
    data.save_tokenizer(TOKENIZER, folder / "hf")
    for name, records in {"texts": [{"text": text} for text in TEXTS], "choice": QUESTIONS, "tasks": TASKS}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "my_rewards.py").write_text(VERIFIER)
    return folder


def flags_of(folder, task, file):
    return [f"--model={folder}/hf", f"--task={task}", f"--data={folder}/{file}"]


def evaluate(folder, task, file, *more):
    return subprocess.run(
        [sys.executable, "-m", "launch.evaluate", *flags_of(folder, task, file), *more],
        env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def read(out):
    assert {path.name for path in out.iterdir()} - {"trajectories.jsonl"} == {"samples.jsonl", "summary.json"}
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    return samples, summary, {row["name"]: row for row in summary["metrics"]}


@pytest.fixture(scope="module")
def alone():
    """log p(token t + 1 | tokens up to t) of one row, from the logits of a plain forward pass."""
    forward = jax.jit(model.forward, static_argnums=2)

    def logps(tokens):
        padded = np.pad(tokens, (0, CONFIG.max_length - len(tokens)))[None]
        whole = jax.nn.log_softmax(forward(PARAMS, padded, CONFIG).logits[0])
        return np.array([whole[t, tokens[t + 1]] for t in range(len(tokens) - 1)])

    return logps


def encode(text):
    return TOKENIZER.encode(text).ids


def test_perplexity_is_that_of_a_loop_over_tokens(folder, alone, tmp_path):
    done = evaluate(folder, "perplexity", "texts.jsonl", "--window=20", f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    samples, summary, metrics = read(tmp_path / "out")
    nats, predicted = 0.0, 0
    for text, sample in zip(TEXTS, samples, strict=True):
        tokens = [*encode(text), data.eos_id(TOKENIZER)]
        # Windows of 20 tokens, each from the last token of the one before.
        expected = np.concatenate([alone(tokens[start : start + 20]) for start in range(0, len(tokens) - 1, 19)])
        assert sample["tokens"] == tokens and len(expected) == len(tokens) - 1
        np.testing.assert_allclose(sample["logps"], expected, atol=2e-5)
        nats, predicted = nats - expected.sum(), predicted + len(expected)
    assert len(samples[0]["tokens"]) > 40, "several windows"
    assert metrics["nats_per_token"]["value"] == pytest.approx(nats / predicted, rel=1e-5)
    assert metrics["perplexity"]["value"] == pytest.approx(np.exp(nats / predicted), rel=1e-4)
    assert metrics["nats_per_token"]["n"] == 3 and summary["settings"] == {"window": 20}
    low, high = metrics["nats_per_token"]["interval"]
    assert low < metrics["nats_per_token"]["value"] < high
    windows = sum(-(-(len(sample["tokens"]) - 1) // 19) for sample in samples)
    assert f"windows={windows}/{windows} " in done.stdout and "nats_per_byte" in done.stdout


def test_choices_score_as_a_loop_over_tokens(folder, alone, tmp_path):
    done = evaluate(folder, "choice", "choice.jsonl", f"--out={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    samples, summary, metrics = read(tmp_path / "out")
    prompt = encode("some ")
    scores = [alone(prompt + encode(choice))[len(prompt) - 1 :].sum() for choice in QUESTIONS[0]["choices"]]
    np.testing.assert_allclose(samples[0]["scores"], scores, rtol=1e-5)
    sizes = [len(choice) for choice in QUESTIONS[0]["choices"]]
    assert samples[0]["chosen"] == np.argmax(scores)
    assert samples[0]["chosen_per_byte"] == np.argmax(np.divide(scores, sizes))
    assert [sample["id"] for sample in samples] == ["first", 1]
    assert metrics["accuracy"]["value"] == np.mean([sample["correct"] for sample in samples])
    assert metrics["accuracy_per_byte"]["value"] == np.mean([sample["correct_per_byte"] for sample in samples])
    assert summary["task"] == "choice" and summary["data"].endswith("choice.jsonl")
    assert "choices=5/5 " in done.stdout


def test_answers_are_verified_and_the_same_every_time(folder, tmp_path):
    sampling = ("--verifier=my_rewards:verifier", "--samples=2", "--temperature=1", "--max_new_tokens=5")
    runs = [
        evaluate(folder, "generate", "tasks.jsonl", *sampling, f"--batch_size={size}", f"--out={tmp_path}/{size}")
        for size in (4, 2)
    ]
    for done in runs:
        assert done.returncode == 0, done.stderr
    samples, _, metrics = read(tmp_path / "4")
    assert [(sample["id"], sample["sample"], sample["seed"]) for sample in samples] == [
        (0, 0, 0), (0, 1, 1), (1, 0, 2), (1, 1, 3), (2, 0, 4), (2, 1, 5),
    ]  # fmt: skip
    assert [sample["score"] for sample in samples] == [1, 1, None, None, 0, 0]
    assert samples[2]["error"] == "RuntimeError: no verdict"
    assert metrics["accuracy"]["value"] == 0.5 and metrics["accuracy"]["n"] == 4
    assert metrics["pass@2"]["value"] == 0.5 and metrics["pass@2"]["n"] == 2
    assert metrics["pass^2"]["value"] == 0.5 and metrics["pass^2"]["interval"] is not None
    assert metrics["verifier_errors"]["value"] == 2 and "verifier_errors  2" in runs[0].stdout
    assert samples[0]["tokens"] != samples[1]["tokens"], "a seed of its own for every sample"
    # Whatever else is in the batch.
    assert [sample["tokens"] for sample in read(tmp_path / "2")[0]] == [sample["tokens"] for sample in samples]


def test_codes_are_asked_for_at_all_lengths_and_depths(folder, tmp_path):
    config = dataclasses.replace(CONFIG, max_length=512)
    save_hf(PARAMS, config, tmp_path / "hf")
    data.save_tokenizer(TOKENIZER, tmp_path / "hf")
    flags = ["--lengths=256,400", "--depths=0,1", "--needles=2", "--max_new_tokens=4", f"--out={tmp_path}/out"]
    (done,) = run_each("launch.evaluate", [[f"--model={tmp_path}/hf", "--task=needle", *flags]])
    assert done.returncode == 0, done.stderr
    samples, summary, metrics = read(tmp_path / "out")
    assert [sample["id"] for sample in samples] == [
        f"{n}/{depth}/{i}" for n in (256, 400) for depth in (0, 1) for i in range(2)
    ]
    assert all(len(sample["tokens"]) <= 4 and sample["score"] in (0, 1) for sample in samples)
    assert metrics["distinct"]["value"] == metrics["distinct"]["n"] == 8
    assert metrics["accuracy/400"]["n"] == 4 and metrics["accuracy/400/1"]["n"] == 2
    assert summary["settings"]["lengths"] == ["256", "400"]
    assert "found, in per cent\ntokens  depth 0  depth 1\n   256 " in done.stdout


def test_environments_are_played_with_several_samples(tmp_path):
    """And as often as asked: lookup has turns and tools. A model that knows nothing solves nothing."""
    config = dataclasses.replace(CONFIG, max_length=512)
    save_hf(PARAMS, config, tmp_path / "hf")
    data.save_tokenizer(TOKENIZER, tmp_path / "hf")
    sampling = ["--samples=3", "--k=1,3", "--temperature=1", "--max_new_tokens=6", "--count=4"]
    flags = ["--environment=lookup", "--difficulties=1,2", "--context=400", *sampling, f"--out={tmp_path}/out"]
    (done,) = run_each("launch.evaluate", [[f"--model={tmp_path}/hf", "--task=environment", *flags]])
    assert done.returncode == 0, done.stderr
    samples, summary, metrics = read(tmp_path / "out")
    assert len(samples) == 12 and [sample["difficulty"] for sample in samples] == [1] * 3 + [2] * 3 + [1] * 3 + [2] * 3
    assert [sample["answer_seed"] for sample in samples] == list(range(12))
    assert {sample["status"] for sample in samples} <= {"finished", "truncated"} and metrics["failed"]["value"] == 0
    assert metrics["distinct"]["value"] == metrics["lookup/tokens"]["n"] == 4
    assert metrics["lookup/accuracy"]["n"] == 12 and metrics["lookup/pass^3"]["value"] == 0
    assert summary["settings"]["difficulties"] == ["1", "2"] and "rollouts=12/12 " in done.stdout
    found = list(read_trajectories(tmp_path / "out" / "trajectories.jsonl"))
    assert [one["extra"]["task"] for one in found] == [sample["task"] for sample in samples]
    assert [one["final_metrics"]["total_completion_tokens"] for one in found] == [one["tokens"] for one in samples]


GOOD = {"perplexity": {"text": "x"}, "choice": QUESTIONS[0], "generate": TASKS[0], "environment": {}, "needle": {}}
TASK, CHOICE = '{"prompt": "x", "answer": "y"}', '{"prompt": "x", "choices": ["a", "b"], "answer": 0}'
BAD = [
    ("perplexity", '{"txt": "x"}', (), "line 2 has no field 'text', did you mean 'txt'?"),
    ("choice", '{"prompt": "x", "choices": ["a", "b"], "answer": 5}', (), "line 2: answer is 5"),
    ("generate", '{"prompt": "x"}', (), "line 2 has no field 'answer'"),
    ("generate", TASK, ("--verifier=my_rewards:verify",), "did you mean 'verifier'?"),
    ("generate", TASK, ("--samples=2", "--temperature=1", "--k=1,3"), "--k has 3; expected numbers from 1 to"),
    ("generate", TASK, ("--k=all",), "--k=all; expected whole numbers with commas"),
    ("generate", TASK, ("--samples=2",), "at temperature 0 would all be the same"),
    ("generate", TASK, ("--temperature=nan",), "--temperature is nan; expected a finite number"),
    ("generate", TASK, ("--stop=",), "--stop is empty"),
    ("choice", CHOICE, ("--samples=2",), "is of --task=generate"),
    ("perplexity", '{"text": "x"}', ("--raw",), "--raw is of --task=choice"),
    ("generate", TASK, ("--lengths=256",), "--lengths is of --task=needle; remove it"),
    ("environment", "", ("--environment=lookup", "--difficulties=1"), "'lookup', which reads no file"),
    ("environment", "", ("--environment=lokup",), "tasks: environment is 'lokup', did you mean 'lookup'"),
    ("environment", "", (), "--environment is missing; there are running_sums"),
    ("needle", "", (), "--task=needle makes its own texts: remove --data"),
    ("generate", TASK, ("--effort=a\tb",), "effort is 'a\\tb'; expected a word"),
]


def test_bad_input_is_one_line_before_the_model_is_loaded(tmp_path):
    (tmp_path / "hf").mkdir()  # holds no model, which would be another message
    (tmp_path / "my_rewards.py").write_text(VERIFIER)
    commands = []
    for i, (task, line, flags, _) in enumerate(BAD):
        (tmp_path / f"{i}.jsonl").write_text(f"{json.dumps(GOOD[task])}\n{line}\n")
        commands.append([*flags_of(tmp_path, task, f"{i}.jsonl"), *flags, f"--out={tmp_path}/out"])
    for (*_, message), done in zip(BAD, run_each("launch.evaluate", commands, path=str(tmp_path)), strict=True):
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done
    assert not list(tmp_path.glob("*out*"))


def test_a_prompt_that_passes_the_context_is_named(folder, tmp_path):
    # 128 new tokens pass a context of 64 too.
    records = {"choice": {"prompt": "x " * 60, "choices": ["a", "b"], "answer": 0}, "generate": TASKS[0]}
    for task, record in records.items():
        (folder / f"long_{task}.jsonl").write_text(json.dumps(record))
    commands = [[*flags_of(folder, task, f"long_{task}.jsonl"), f"--out={tmp_path}/out"] for task in records]
    for task, done in zip(records, run_each("launch.evaluate", commands), strict=True):
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
        assert f"long_{task}.jsonl, line 1: prompt of " in done.stderr, done
        assert "pass the model's context of 64" in done.stderr, done
    assert not list(tmp_path.iterdir())

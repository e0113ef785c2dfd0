import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from ling_jax import data
from ling_jax.checkpoint import orbax, save_hf
from tests.helpers.damage import damage
from tests.helpers.faults import ROOT
from tests.helpers.official_forms import LING_2_6
from tests.helpers.refusals import run_each
from tests.helpers.tiny import random_params, tiny_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = tiny_config(vocab_size=300, compute_dtype="float32", remat="none")
    save_hf(random_params(config, dtype="float32"), config, folder / "hf")
    data.save_tokenizer(data.train_bpe(["some words, and some more words"], 270), folder / "hf")
    return folder / "hf"


def generate(folder, *more, stdin=""):
    command = [sys.executable, "-m", "launch.generate", f"--model={folder}", "--max_new_tokens=20", *more]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_a_prompt_is_gone_on_from_and_the_seed_decides(folder):
    first, again, other = (generate(folder, "--prompt=some ", f"--seed={seed}").stdout for seed in (1, 1, 2))
    assert first.startswith("some ") and len(first) > 10
    assert first == again != other


def test_a_file_is_answered_line_by_line(folder, tmp_path):
    records = [{"prompt": "some ", "id": i} for i in range(3)] + [{"messages": [{"role": "user", "content": "words"}]}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)))
    done = generate(
        folder,
        f"--prompts={tmp_path}/prompts.jsonl",
        f"--out={tmp_path}/out.jsonl",
        "--batch_size=2",
        "--temperature=0",
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{key: answer[key] for key in record} for record, answer in zip(records, answers, strict=True)] == records
    assert answers[0]["tokens"] == answers[1]["tokens"] == answers[2]["tokens"]
    for answer in answers:
        assert len(answer["tokens"]) == len(answer["logps"]) <= 20 and max(answer["logps"]) <= 0
        assert answer["ended"] in ("end", "length") and np.isfinite(answer["logps"]).all()
    assert "engine: 2 slots" in done.stdout and "prompts=4/4" in done.stdout and "answers in " in done.stdout


@pytest.fixture(scope="module")
def chat_folder(folder):
    """The same model with a chat template, one that thinks by default."""
    copy = folder.with_name("chat")
    shutil.copytree(folder, copy)
    (copy / "chat_template.jinja").write_text(LING_2_6)
    return copy


@pytest.mark.slow
def test_a_model_for_conversations_answers_a_prompt_as_a_users_message(chat_folder, tmp_path):
    records = [{"prompt": "words"}, {"messages": [{"role": "user", "content": "words"}]}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, records)))
    flags = [f"--prompts={tmp_path}/prompts.jsonl", f"--out={tmp_path}/out.jsonl", "--temperature=0"]
    done = generate(chat_folder, *flags, "--thinking=off")
    assert done.returncode == 0, done.stderr
    prompt, message = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert prompt["tokens"] == message["tokens"]
    assert f"prompt: one user message, by {chat_folder}/chat_template.jinja; --raw takes it" in done.stdout


@pytest.mark.slow
def test_raw_goes_on_from_a_prompt_and_a_line_says_which(chat_folder):
    asked, raw = generate(chat_folder, "--prompt=words "), generate(chat_folder, "--prompt=words ", "--raw")
    assert raw.stdout.startswith("words ") and "plain text to go on from (--raw)" in raw.stderr
    assert not asked.stdout.startswith("words ") and "one user message" in asked.stderr


def test_what_the_template_cannot_be_asked_for_is_one_line(chat_folder, tmp_path):
    endless = chat_folder.with_name("endless")
    shutil.copytree(chat_folder, endless)
    (endless / "chat_template.jinja").write_text("{% for i in range(10 ** 9) %}{% endfor %}")
    flags = ["--prompt=x", "--max_new_tokens=2"]
    commands = [
        [f"--model={chat_folder}", *flags, "--effort=high"],
        [f"--model={chat_folder}", "--chat", "--raw"],
        [f"--model={endless}", *flags],
    ]
    messages = ["reads none of reasoning_effort", "--raw and --chat exclude each other", "Range too big"]
    for message, done in zip(messages, run_each("launch.generate", commands), strict=True):
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done


@pytest.mark.slow
def test_chat_answers_every_line(folder):
    done = generate(folder, "--chat", stdin="some\n/reset\nmore\n/exit\nnot this\n")
    assert done.returncode == 0 and done.stdout.count("\n") >= 2, done.stderr
    assert "/reset begins a new conversation" in done.stderr and "not this" not in done.stdout


BAD_LINES = {
    "{": "line 2 is not JSON",
    '{"text": "x"}': "line 2: expected an object with one of 'prompt' and 'messages'",
    '{"prompt": ""}': "line 2: prompt is ''; expected text",
    '{"messages": [{"role": "usr", "content": "x"}]}': "line 2: messages[0].role is 'usr', did you mean 'user'?",
    '{"prompt": "x", "id": 0}': "line 2: id is 0, as that of ",
    json.dumps({"prompt": "word " * 400}): "pass the model's context of 512",
}


def test_a_bad_record_is_named_before_any_answer(folder, tmp_path):
    for i, line in enumerate(BAD_LINES):
        (tmp_path / f"{i}.jsonl").write_text('{"prompt": "some"}\n' + line)
    flags = [f"--model={folder}", f"--out={tmp_path}/out.jsonl"]
    commands = [[*flags, f"--prompts={tmp_path}/{i}.jsonl"] for i in range(len(BAD_LINES))]
    for message, done in zip(BAD_LINES.values(), run_each("launch.generate", commands), strict=True):
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done
    assert not (tmp_path / "out.jsonl").exists()


BAD_FLAGS = {
    "--stop=": "--stop is empty",
    "--temperature=nan": "--temperature is nan; expected a finite number",
    "--seed=4294967296": "seeds pass 2^32 - 1",
    "--effort= high": "effort is ' high'; expected a word",
    "--thinking=of": "should be one of <default|on|off>",
    "--prompt=a\udcff": "--prompt",
}


def test_bad_values_are_told_before_a_model_is_loaded(tmp_path):
    (tmp_path / "none.jsonl").touch()
    commands = [["--model=absent", flag, *([] if "prompt" in flag else ["--prompt=x"])] for flag in BAD_FLAGS]
    commands += [
        ["--model=absent", f"--prompts={tmp_path}/none.jsonl", f"--out={tmp_path}"],
        ["--model=absent", f"--prompts={tmp_path}/none.jsonl", f"--out={tmp_path}/out.jsonl"],
    ]
    messages = [*BAD_FLAGS.values(), "is a folder; name a file", "none.jsonl has no prompts"]
    for message, done in zip(messages, run_each("launch.generate", commands), strict=True):
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done


def test_a_prompt_that_is_too_long_is_not_shown(folder):
    done = generate(folder, f"--prompt={'word ' * 400}")
    assert done.returncode == 2 and "pass the model's context of 512" in done.stderr and not done.stdout


def test_a_damaged_checkpoint_is_named_and_strict_refuses_it(tmp_path):
    config = tiny_config(vocab_size=300)
    with orbax.open_manager(tmp_path / "checkpoints", keep=2) as manager:
        for step in (1, 2):
            orbax.save(manager, step, {"params": {"embed": np.zeros((300, 8))}}, config)
    data.save_tokenizer(data.train_bpe(["some words"], 270), tmp_path / "tokenizer")
    damage("flip", tmp_path / "checkpoints" / "2", random.Random(0))
    commands = [[f"--model={tmp_path}", "--prompt=x", *more] for more in ([], ["--strict"], ["--no_verify"])]
    fallback, strict, blind = run_each("launch.generate", commands)
    assert [done.returncode for done in (fallback, strict, blind)] == [2, 2, 2]  # they are no models, after all
    assert fallback.stderr.startswith("WARNING: DAMAGED CHECKPOINT: ") and "checkpoint 1 is read" in fallback.stderr
    assert strict.stderr.startswith(f"error: {tmp_path}/checkpoints/2/") and len(strict.stderr.splitlines()) == 1
    assert "its parameters are not those of its model" in blind.stderr and len(blind.stderr.splitlines()) == 1


def test_a_folder_without_a_model_is_named(tmp_path):
    done = generate(tmp_path, "--prompt=x")
    assert done.returncode == 2 and "neither checkpoints/" in done.stderr

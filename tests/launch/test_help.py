"""What programs say to someone who does not know them yet."""

import subprocess
import sys

import pytest

from launch.__main__ import programs
from launch.config_fields import REQUIRED, fields
from ling_jax.align.sft import SftConfig
from ling_jax.train.config import PretrainConfig
from tests.helpers.faults import ROOT
from tests.helpers.refusals import run_each

TINY = "--config=configs/pretrain/tiny_2_6.py"
WORKDIR = "--workdir=runs/x"
MISTAKES = {
    "launch.pretrain": [
        ([], "--config is missing: the experiment, a file such as configs/pretrain/tiny_2_6.py; --workdir is missing"),
        ([TINY, WORKDIR, "--steps=5"], "did you mean --config.train.steps?"),
        ([TINY, WORKDIR, "--config.steps=5"], "did you mean --config.train.steps?"),
        ([TINY, WORKDIR, "--config.train.steps=1e3"], "--config.train.steps=1e3 is no whole number"),
        ([TINY, WORKDIR, "--config.optimizer.lr=1"], "has no field 'lr'; did you mean --config.optimizer.peak_lr?"),
        ([TINY, WORKDIR, "--config.model=ling-2.6-flash"], "is a group of 44 fields; override them one by one: --con"),
        ([TINY, WORKDIR, "--config.data.sources=books/"], "expected a dict of Source's fields, such as {'kind': …}"),
        ([TINY, WORKDIR, "--data=no/books"], "no/books does not exist; name a file, a folder or a glob"),
        (["--config=tiny_2_6", WORKDIR], "tiny_2_6 does not exist; did you mean configs/pretrain/tiny_2_6.py?"),
        (["--config=configs/align", WORKDIR], "configs/align is a folder; name a file in it: configs/align/ling_2_6_"),
        (["--config=configs/align/tiny_sft.py", WORKDIR], "is a config of launch.sft"),
        ([TINY, WORKDIR, "--config.learning_rate=1e-4"], "did you mean --config.optimizer.peak_lr?"),
        ([TINY, WORKDIR, "--epochs=3"], "there is no flag --epochs; did you mean --config.train.steps?"),
        ([TINY, "--workdir=s3://bucket/x"], "s3:// is not supported; name a local path, without a scheme, or gs://"),
        ([TINY, "--workdir=README.md"], "README.md is not a folder; name another workdir"),
        ([TINY, WORKDIR, "--config.train.batch_size=0"], "train.batch_size is 0; it must be positive"),
        (["runs/x", TINY], "--workdir is missing: folder of the run; a run that is there continues; 'runs/x' is"),
    ],
    "launch.generate": [
        (["runs/x", "hello"], "--model is missing: a run's workdir or a Hugging Face folder; 'runs/x' is no flag"),
        (["--model=inclusionAI/Ling", "--prompt=x"], "fetch it by `hf download inclusionAI/Ling --local-dir Ling`"),
        (["--model=runs/nowhere/x", "--prompt=x"], "it does not exist"),
        (["--model=README.md", "--prompt=x"], "it is a file, and a model is a folder"),
        (["--model=x", "--promt=x"], "there is no flag --promt; did you mean --prompt or --prompts?"),
        (["--model=x", "--step=latest", "--prompt=x"], "--step=latest is no whole number"),
        (["--model=x"], "give one of --prompt, --prompts and --chat"),
        (["--model=gpt2", "--prompt=x"], "it does not exist; name the workdir of a run, or the folder of a model that"),
        (["--model=runs/sft", "--prompt=x"], "run the program that makes it first (a config's first lines give the"),
        (["--model=x", "--max_tokens=5"], "there is no flag --max_tokens; did you mean --max_new_tokens?"),
        (
            ["--model=x", "--prompts=chats.jsonl", "--out=o"],
            "chats.jsonl does not exist; name a file or folder that",
        ),
        (["--model=x", "--prompt=x", "--thinking=yes"], "should be one of <default|on|off>"),
    ],
}
OTHERS = {  # tried in the slow tests: each program takes seconds to import
    "launch.evaluate": [
        (["--model=x", "--task=mmlu", "--data=cais/mmlu"], "should be one of <perplexity|choice|generate|"),
        (["--model=x", "--task=choice", "--data=cais/mmlu"], "does not exist; name"),
        (["--model=x", "--task=generate", "--data=README.md", "--samples=4"], "would all be the same; give --temper"),
        (["--model=x", "--task=generate", "--data=README.md", "--verifier=my.py"], "expected module:name"),
    ],
    "launch.sft": [
        (["--config=configs/align/tiny_sft.py", WORKDIR, "--data=x"], "did you mean --config.sources[0].path?"),
        (["--config=configs/align/tiny_sft.py", WORKDIR, "--model=x"], "did you mean --config.start_from?"),
    ],
    "launch.rl": [
        (["--config=configs/rl/tiny_kpop.py", WORKDIR, "--config.objective.name=ppo"], "expected one of grpo, gspo,"),
        (
            ["--config=configs/rl/tiny_kpop.py", WORKDIR, "--config.objective.options.phi=-1"],
            "phi is -1.0; expected a pos",
        ),
        (["--config=configs/rl/tiny_kpop.py", WORKDIR, "--config.reward=accuracy"], "expected one of outcome, evo_cot"),
        (["--config=configs/rl/tiny_kpop.py", WORKDIR, "--lr=1"], "did you mean --config.optimizer.peak_lr?"),
    ],
    "launch.port": [
        (["--source=inclusionAI/Ling", "--target=runs/x"], "fetch it by `hf download inclusionAI/Ling"),
        (["--source=runs/x"], "name --source and --target, or two models to --compare"),
        (["--source=runs/x", "--target=runs/x", "--dtype=int4"], "should be one of <bfloat16|float32|float8>"),
    ],
    "launch.compile": [
        (["--config=configs/pretrain/ling_2_6_flash.py", "--topology=v5p-200"], "the nearest are v5p-128 (v5p:4x4x4)"),
        (["--config=configs/pretrain/ling_2_6_flash.py", "--topology=H100"], "none of v5e, v5p, v6e, tpu7x"),
    ],
    "launch.demo": [(["--preset=fast"], "should be one of <full|quick>"), (["quick"], "'quick' is no flag")],
}


@pytest.mark.parametrize("program", [*MISTAKES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_a_natural_mistake_is_answered_with_what_to_do(program):
    mistakes = (MISTAKES | OTHERS)[program]
    commands = [command for command, _ in mistakes]
    for done, (command, answer) in zip(run_each(program, commands, together=4), mistakes, strict=True):
        assert done.returncode == 2 and answer in done.stderr, (command, done.stderr)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


def run(*command: str) -> str:
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_help_shows_the_flags_and_the_fields_of_the_config():
    shown = run("launch.pretrain", "--help")
    assert shown.startswith("Pre-trains a model on text.")
    assert "--workdir: folder of the run" in shown and "--config: the experiment" in shown
    assert "  train.batch_size: int  # rows of a step, over all hosts" in shown


def test_the_list_of_programs_has_all_of_them():
    lines = run("launch").splitlines()
    assert any(line.startswith("  python -m launch.pretrain") and "Pre-trains a model" in line for line in lines)
    assert {"align", "generate", "port", "doctor"} <= programs().keys() and "flags" not in programs()
    assert len(lines) == 1 + len(programs())


def test_the_library_says_where_the_programs_are():
    assert "run from a checkout" in run("ling_jax")


def test_every_field_of_a_config_is_listed_with_its_default():
    found = {field.name: field for field in fields([PretrainConfig, SftConfig])}
    assert found["train.steps"].default is REQUIRED and found["optimizer.b2"].default == 0.95
    assert found["data.sources[i].weight"].type == "float" and found["samples"].default == 4
    assert found["start_from"].text.startswith("A run's workdir or a Hugging Face folder.")


def test_several_models_in_a_folder_are_named(tmp_path):
    for stage in ("sft", "kpop"):
        (tmp_path / stage / "checkpoints" / "3").mkdir(parents=True)
    inside = "name {0}/sft, and a checkpoint by --step"
    near = {tmp_path: "name one of {0}/kpop, {0}/sft", tmp_path / "sft" / "checkpoints": inside}
    near[tmp_path / "sft" / "checkpoints" / "3"] = near[tmp_path / "sft" / "checkpoints"]
    results = run_each("launch.generate", [[f"--model={path}", "--prompt=x"] for path in near])
    for done, answer in zip(results, near.values(), strict=True):
        assert done.returncode == 2 and answer.format(tmp_path) in done.stderr, done.stderr

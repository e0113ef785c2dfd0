"""Programs take gs:// wherever they take a path, and end in one line where they cannot."""

import json
import re
import signal
import subprocess
import sys

import pytest

from ling_jax import paths
from ling_jax.checkpoint.steps import steps_in
from ling_jax.files import upload_folder
from ling_jax.sums import local_copy
from tests.helpers.faults import ROOT, assert_same_end, run_with_kills
from tests.helpers.gcs_emulator import FORBIDDEN
from tests.helpers.refusals import run_each
from tests.helpers.rl_run import write_start
from tests.helpers.small_run import write_corpus
from tests.helpers.small_stage import write_stage

SUMS = "({'environment': 'running_sums', 'difficulties': (1,), 'count': 6},)"
SHORT = ["--config.data.sequence_length=128", "--config.train.batch_size=4", "--config.train.steps=4"]
RL = ["context=184", "slots=16", "group_size=4", "prompts_per_step=1", "max_tokens=48", "token_budget=60"]


def run(module, *flags):
    done = subprocess.run([sys.executable, "-m", module, *flags], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_port_names_what_is_wrong_with_its_paths_before_the_work(object_store, gs):
    good = f"{gs}/model"
    cases = {
        "s3://bucket/run": "s3://bucket/run: s3:// is not supported",
        "file:///model": "file:// is not supported",
        "gs://no-such-bucket/model": "the bucket gs://no-such-bucket does not exist",
        f"gs://{FORBIDDEN}/model": f"gs://{FORBIDDEN}: permission denied",
    }
    commands = [[f"--source={path}", f"--target={good}"] for path in cases]
    commands += [[f"--source={good}", f"--target={path}"] for path in cases]
    commands += [[f"--source={good}", f"--target={good}"], [f"--source={good}", "--target=x"]]
    messages = [*cases.values(), *cases.values(), "is the source; name a new folder", "it does not exist"]
    for done, message in zip(run_each("launch.port", commands), messages, strict=True):
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done
    assert not gs.exists()


@pytest.mark.slow
def test_every_program_refuses_other_schemes_before_its_work(tmp_path):
    write_stage(tmp_path / "stage")
    config, model = "--config=configs/{}.py", f"--model={tmp_path / 'stage'}"
    start = f"--config.start_from={tmp_path / 'stage'}"
    (tmp_path / "texts").write_text("text")
    run_ = f"--workdir={tmp_path / 'run'}"
    text = f"--config.data.sources=({{'kind': 'text', 'path': '{tmp_path / 'texts'}'}},)"
    pretrain, tuning = ["--config=tests/helpers/small_run.py", text], [config.format("align/tiny_sft"), start]
    programs = {
        "pretrain": [
            [*pretrain, "--workdir=s3://a/b"],
            [*pretrain, run_, "--config.start_from=s3://a/b"],
            [*pretrain, run_, "--config.data.sources=({'kind': 'text', 'path': 's3://a/b'},)"],
            [*pretrain, run_, "--config.data.folder=s3://a/b"],
            [*pretrain, run_, "--config.data.tokenizer=s3://a/b"],
        ],
        "sft": [
            [*tuning, "--workdir=s3://a/b"],
            [*tuning, run_, "--config.start_from=s3://a/b"],
            [*tuning, run_, "--config.sources=({'path': 's3://a/b'},)"],
        ],
        "distill": [[config.format("align/tiny_shortest_correct"), start, "--workdir=s3://a/b"]],
        "rl": [
            [config.format("rl/tiny_kpop"), start, "--workdir=s3://a/b"],
            [config.format("rl/tiny_kpop"), run_, "--config.start_from=s3://a/b"],
        ],
        "align": [[config.format("align/tiny_evo_cot"), start, "--workdir=s3://a/b"]],
        "migrate": [
            [config.format("migrate/tiny"), "--workdir=s3://a/b", f"--config.source={tmp_path / 'stage'}"],
            [config.format("migrate/tiny"), run_, "--config.source=s3://a/b"],
            [config.format("migrate/tiny"), "--dry_run", "--config.source=s3://a/b"],
        ],
        "generate": [
            ["--model=s3://a/b", "--prompt=x"],
            [model, "--prompts=s3://a/b", f"--out={tmp_path / 'out'}"],
            [model, f"--prompts={tmp_path / 'texts'}", "--out=s3://a/b"],
        ],
        "evaluate": [
            ["--model=s3://a/b", "--task=perplexity", f"--data={tmp_path / 'texts'}"],
            [model, "--task=perplexity", "--data=s3://a/b"],
            [model, "--task=perplexity", f"--data={tmp_path / 'texts'}", "--out=s3://a/b"],
        ],
        "compile": [[config.format("pretrain/tiny_2_6"), "--topology=v5e:2x2", "--json_out=s3://a/b"]],
        "demo": [["--workdir=s3://a/b"], ["--workdir=gs://a/b"]],
    }
    for program, commands in programs.items():
        for flags, done in zip(commands, run_each(f"launch.{program}", commands), strict=True):
            assert done.returncode == 2 and "Traceback" not in done.stderr, (program, flags, done)
            named = "s3:// is not supported" if "s3" in str(flags) else "the demo's folder is a local one"
            assert named in done.stderr and done.stderr.count("\n") == 1, (program, flags, done.stderr)
    assert not (tmp_path / "run").exists() and not (ROOT / "s3:").exists()


@pytest.mark.slow
def test_a_run_in_a_store_is_stopped_and_killed_and_ends_as_one_on_the_disk(tmp_path, gs, cache, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    write_corpus(tmp_path / "corpus")
    upload_folder(tmp_path / "corpus", gs / "corpus")

    def run_to(steps, workdir, **kills):
        sources = f"--config.data.sources=({{'kind': 'text', 'path': '{gs}/corpus'}},)"
        flags = [
            "--config=tests/helpers/small_run.py",
            f"--workdir={workdir}",
            sources,
            f"--config.train.steps={steps}",
        ]
        flags += ["--config.train.eval_every=0"]  # a run that stops for a signal leaves out the evaluation of its step
        how = dict(kills=0, longest=2, seed=0, log=tmp_path / "log", begin="step=") | kills
        return run_with_kills([sys.executable, "-m", "launch.pretrain", *flags], **how)

    for steps, number in ((12, signal.SIGTERM), (24, signal.SIGKILL)):
        run_to(steps, tmp_path / "alone")
        assert run_to(steps, gs / "run", kills=2, number=number)
    assert steps_in(gs / "run" / "checkpoints") == steps_in(tmp_path / "alone" / "checkpoints")
    assert_same_end(tmp_path / "alone", local_copy(gs / "run"))
    assert any(name.startswith("events.out.tfevents") for name in paths.names_in(gs / "run" / "tensorboard"))
    assert json.loads((gs / "run" / "config.json").read_bytes())["train"]["steps"] == 24


@pytest.mark.slow
def test_stages_and_readers_take_models_and_outputs_in_a_store(tmp_path, gs, cache, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    write_stage(tmp_path / "stage")
    upload_folder(tmp_path / "stage", gs / "stage")
    run("launch.port", f"--source={gs}/stage", f"--target={gs}/hf", "--verify")
    start = f"--config.start_from={gs}/stage"
    run("launch.sft", "--config=configs/align/tiny_sft.py", f"--workdir={gs}/sft", f"--config.start_from={gs}/hf",
        f"--config.sources={SUMS}", "--config.optimizer.peak_lr=1e-2", *SHORT[:2],
        "--config.train.steps=120")  # fmt: skip
    teachers = f"--config.teachers=({{'model': '{gs}/sft', 'tasks': {SUMS}}},)"
    run("launch.distill", "--config=configs/align/tiny_shortest_correct.py", f"--workdir={gs}/distilled", teachers,
        f"--config.start_from={gs}/sft", "--config.sampling.context=128", *SHORT)  # fmt: skip
    write_start(tmp_path / "start")
    upload_folder(tmp_path / "start", gs / "start")
    rl = ["--config=configs/rl/tiny_kpop.py", f"--workdir={gs}/rl", f"--config.start_from={gs}/start"]
    rl += ["--config.train.steps=2", "--config.train.eval_tasks=4", "--config.train.microbatches=1"]
    rl += [f"--config.rollout.{field}" for field in RL]
    run("launch.rl", *rl)
    assert {"events.jsonl", "metrics.jsonl", "samples.jsonl"} <= set(paths.names_in(gs / "rl"))
    assert "2 steps are the same, bit for bit" in run("launch.rl", *rl, "--replay")
    (gs / "prompts.jsonl").write_text('{"prompt": "1"}\n')
    run("launch.generate", f"--model={gs}/distilled", f"--prompts={gs}/prompts.jsonl", f"--out={gs}/answers.jsonl",
        "--max_new_tokens=4")  # fmt: skip
    assert json.loads((gs / "answers.jsonl").read_bytes())["tokens"]
    (gs / "texts" / "a.txt").write_text("a text of a few words")
    run("launch.evaluate", f"--model={gs}/hf", "--task=perplexity", f"--data={gs}/texts", f"--out={gs}/results")
    assert paths.names_in(gs / "results") == ["samples.jsonl", "summary.json"]
    text = f"--config.data.sources=({{'kind': 'text', 'path': '{gs}/texts'}},)"
    traced = ["--profile", "--config.train.profile_step=1"]
    run("launch.pretrain", "--config=configs/pretrain/continue_tiny.py", f"--workdir={gs}/on", start, text, *SHORT,
        *traced)  # fmt: skip
    assert any(name.endswith(".xplane.pb") for name in paths.files_below(gs / "on" / "profile"))


@pytest.mark.slow
def test_ports_that_are_killed_go_on_in_a_store(tmp_path, gs):
    write_stage(tmp_path / "stage")
    for source, target in ((tmp_path / "stage", gs / "hf"), (gs / "hf", gs / "back"), (gs / "back", tmp_path / "hf")):
        command = [sys.executable, "-m", "launch.port", f"--source={source}", f"--target={target}", "--verify"]
        run_with_kills([*command, "--shard_gb=0.00001"], kills=3, longest=12, seed=1, log=tmp_path / "log")
        assert re.search(r"verified: \d+ tensors; .* holds what the source does", (tmp_path / "log").read_text())
    assert paths.files_below(gs / "hf") == paths.files_below(tmp_path / "hf")
    for name in paths.files_below(gs / "hf"):
        assert (gs / "hf" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name

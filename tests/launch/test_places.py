"""Places for a program's files: what cannot be one is named before the work, in one line."""

import os
import re

import pytest

from ling_jax.checkpoint import save_hf
from tests.helpers.disks import WITHOUT_OVERRIDE, small_disk
from tests.helpers.fork_server import ROOT
from tests.helpers.refusals import run_each
from tests.helpers.small_run import write_corpus
from tests.helpers.tiny import random_params, tiny_config


@pytest.fixture
def places(tmp_path):
    """Names by what is wrong with them, and what is said."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return {
        "": "empty|name --source and --target",
        "/": "is the root of the file system",
        f"{tmp_path}/file/": "is not a folder|exists",
        f"{tmp_path}/file/x": "ot a (folder|directory)",
        f"{tmp_path}/loop": "(loop|many levels of symbolic links)",
        f"{tmp_path}/{'x' * 300}": "too long",
        "~nobody_has_this_name/x": "home directory",
    }


def refused(module, commands, messages, prefix=()):
    for done, message in zip(run_each(module, commands, prefix=prefix), messages, strict=True):
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
        assert done.stderr.startswith("error: "), done
        assert re.search(message, done.stderr), done


@pytest.fixture
def run(tmp_path):
    """Flags of a small run."""
    write_corpus(tmp_path / "corpus")
    sources = f"({{'kind': 'text', 'path': '{tmp_path / 'corpus'}'}},)"
    return [f"--config={ROOT / 'tests/helpers/small_run.py'}", f"--config.data.sources={sources}"]


def test_a_workdir_that_cannot_be_one_is_named(tmp_path, run, places):
    places |= {f"{tmp_path}/dangling": "is a link to .*nowhere, which does not exist"}
    for name in ("data", "tokenizer", "checkpoints", "evaluation"):
        (tmp_path / f"their_{name}" / name).mkdir(parents=True)
        (tmp_path / f"their_{name}" / name / "notes.txt").write_text("theirs")
        places[f"{tmp_path}/their_{name}"] = f"their_{name}/{name} is not of a run"
    (tmp_path / "their_log").mkdir()
    (tmp_path / "their_log" / "metrics.jsonl").write_text('{"step": 0}\n')
    places[f"{tmp_path}/their_log"] = "metrics.jsonl is not of a run"
    before = sorted(path for path in tmp_path.rglob("*"))
    refused("launch.pretrain", [[*run, f"--workdir={place}"] for place in places], places.values())
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_what_permissions_forbid_is_named_before_the_work(tmp_path, run):
    for name in ("closed", "half_closed/checkpoints", "closed_log", "closed_tokens"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "half_closed" / ".lock").touch()
    (tmp_path / "closed_log" / ".lock").touch()
    (tmp_path / "closed_log" / "metrics.jsonl").touch(0o444)
    for name in ("closed", "half_closed/checkpoints", "closed_tokens"):
        (tmp_path / name).chmod(0o555)
    cases = {
        "closed": "nothing can be written into .*/closed: permission denied",
        "closed/below": "nothing can be written into .*/closed: permission denied",
        "half_closed": "nothing can be written into .*/half_closed/checkpoints: permission denied",
        "closed_log": "metrics.jsonl cannot be written: permission denied",
    }
    commands = [[*run, f"--workdir={tmp_path / name}"] for name in cases]
    commands.append([*run, f"--workdir={tmp_path / 'run'}", f"--config.data.folder={tmp_path / 'closed_tokens'}"])
    refused(
        "launch.pretrain", commands, [*cases.values(), "nothing can be written into .*/closed_tokens"], WITHOUT_OVERRIDE
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_disks_that_are_closed_or_too_small_are_named_before_the_work(tmp_path, run):
    with small_disk(tmp_path / "small", 300_000), small_disk(tmp_path / "closed", 300_000, "ro"):
        commands = [[*run, f"--workdir={tmp_path / name / 'run'}"] for name in ("small", "closed")]
        few = ["prlimit", "--nofile=64:64"]
        wanted = [r"[\d.]+ (MB|kB) of disk are missing for 3 checkpoints .*, which take", "Read-only file system"]
        refused("launch.pretrain", commands, wanted)
        assert not any((tmp_path / "small").iterdir())
    refused("launch.pretrain", commands[:1], ["may open 64 files, and needs 256"], few)


def test_targets_of_ports_and_answers_that_cannot_be_ones_are_named_before_the_plan(tmp_path, places):
    config = tiny_config(compute_dtype="float32")
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    (tmp_path / "closed").mkdir(0o555)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    targets = places | {
        f"{tmp_path}/full": "exists and is not empty",
        f"{tmp_path}/full/..": "exists and is not empty",
        f"{tmp_path}/{'x' * 250}": "too long",
        f"{tmp_path}/closed/x": "nothing can be written into .*/closed",
    }
    flags = [[f"--source={tmp_path / 'hf'}", f"--target={target}"] for target in targets]
    refused("launch.port", flags, targets.values(), WITHOUT_OVERRIDE)
    replaced = (f"{tmp_path}/full", f"{tmp_path}/file/")  # an --out that is there is replaced
    outputs = {name: message for name, message in targets.items() if not name.startswith(replaced)}
    outputs[f"{tmp_path}/full"] = outputs[f"{tmp_path}/full/.."] = "is a folder; name a file"
    flags = [["--model=absent", f"--prompts={tmp_path}/prompts.jsonl", f"--out={output}"] for output in outputs]
    refused("launch.generate", flags, outputs.values(), WITHOUT_OVERRIDE)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]

"""A disk that fills up in the middle: one line, nothing lost, nothing half-written, and the same command continues."""

import contextlib
import json
import shutil

import pytest

from ling_jax.checkpoint import port, save_hf
from ling_jax.checkpoint.hf_reader import HfReader
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.layers import open_layers
from ling_jax.checkpoint.orbax_parts import OrbaxWriter
from ling_jax.checkpoint.steps import choose_step, steps_in
from ling_jax.checkpoint.transfer import transfer
from ling_jax.data import save_tokenizer, train_bpe
from tests.helpers.disks import fill, fill_when, small_disk
from tests.helpers.faults import assert_same_files, assert_same_model, assert_same_run
from tests.helpers.fork_server import ROOT, Program
from tests.helpers.small_run import write_corpus
from tests.helpers.tiny import random_params, tiny_config

pytestmark = pytest.mark.slow


def ends_with_a_line(program, flags, disk, begun, leave, log):
    """Runs the program on a disk that fills up when a path is there, and frees it again.

    Returns what is said; "" where the program was faster.
    """
    filler = fill_when(disk, begun, leave)
    program.start(flags, log)
    code = program.wait()
    filler.join()
    (disk / "filler").unlink()
    if code == 0:
        return ""
    lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert code in (1, 2) and len(lines) == 1, log.read_text()
    assert "Traceback" not in log.read_text() and "free space" in lines[0], log.read_text()
    return lines[0]


def ends_well(program, flags, log):
    program.start(flags, log)
    assert program.wait() == 0, log.read_text()


@pytest.fixture
def folder(tmp_path):
    """Mounts at tmp_path/disk."""
    with small_disk(tmp_path / "disk", 30_000_000):
        yield tmp_path


def test_runs(folder):
    write_corpus(folder / "corpus", documents=60)
    sources = f"({{'kind': 'text', 'path': '{folder / 'corpus'}'}},)"
    run = [f"--config={ROOT / 'tests/helpers/small_run.py'}", f"--config.data.sources={sources}"]
    run += ["--config.model.num_layers=1", "--config.model.mtp_depth=0"]
    moments = [  # (path, bytes that are left)
        (".lock", 0), (".lock", 20_000), ("tokenizer", 3000), ("tensorboard/*", 100), ("metrics.jsonl", 4096),
        ("checkpoints", 60_000), ("checkpoints/3", 100_000), ("checkpoints/6*tmp", 30_000), ("checkpoints/6", 0),
    ]  # fmt: skip
    disk, log, said = folder / "disk", folder / "log", []
    compiled = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    with contextlib.closing(Program("launch.pretrain", compiled)) as program:
        ends_well(program, [*run, f"--workdir={folder / 'alone'}"], log)
        for i, (begun, leave) in enumerate(moments):
            workdir = disk / str(i)
            flags = [*run, f"--workdir={workdir}"]
            said.append(ends_with_a_line(program, flags, disk, f"{i}/{begun}", leave, log))
            assert not [path for path in workdir.rglob("*") if path.name.endswith((".partial", "-tmp"))]
            for step in steps_in(workdir / "checkpoints"):
                assert choose_step(workdir / "checkpoints", step) == step
            ends_well(program, flags, log)
            assert_same_run(folder / "alone", workdir)
    for part in ("data/0_text cannot be written", "checkpoints: No space left on device; free space; the newest whole"):
        assert any(part in line for line in said), said


@pytest.fixture
def model(tmp_path):
    config = tiny_config(num_layers=2, hidden_size=1024, compute_dtype="float32", vocab_size=300)
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "hf")
    save_tokenizer(train_bpe(["some words, and some more words"], 270), tmp_path / "hf")
    return tmp_path / "hf"


def test_ports(folder, model):
    disk, log, said = folder / "disk", folder / "log", []
    with contextlib.closing(Program("launch.port", {})) as program:
        for source, name, same in ((model, "run", assert_same_model), (folder / "run", "back", assert_same_files)):
            flags = [f"--source={source}", "--shard_gb=0.0005"]
            ends_well(program, [*flags, f"--target={folder / name}"], log)
            for leave in (0, 50_000, 1_000_000):
                target = disk / f"{name}_{leave}"
                flags = [f"--source={source}", "--shard_gb=0.0005", f"--target={target}"]
                said.append(ends_with_a_line(program, flags, disk, f".{target.name}.partial", leave, log))
                if said[-1]:
                    assert str(target) in said[-1].replace(".partial", "").replace("/.", "/") and not target.exists()
                    ends_well(program, flags, log)
                same(folder / name, target)
                shutil.rmtree(target)
                assert sorted(path.name for path in disk.glob(".*")) == []
    assert any(said)


@pytest.mark.parametrize("form", ["hf", "orbax"])
@pytest.mark.parametrize("leave", [0, 50_000, 1_000_000])
def test_a_port_that_meets_a_full_disk_goes_on_when_there_is_space(folder, model, form, leave):
    reader, disk = HfReader(model), folder / "disk"

    def move(*, full):
        with port.resumable_folder(disk / "out", {}, resume=True) as partial:
            if full:
                fill(disk, leave)
            if form == "hf":
                writer = HfWriter(partial, reader.config, reader.dtypes, max_shard_bytes=500_000)
            else:
                writer = OrbaxWriter(partial / "checkpoints", reader.config, reader.dtypes)
            transfer(reader, writer)

    with pytest.raises(OSError, match=f"(?s){disk}.*No space left on device"):
        move(full=True)
    assert not (disk / "out").exists()
    (disk / "filler").unlink()
    move(full=False)
    written = open_layers(disk / "out")
    for leaf in reader.dtypes:
        assert written.read(leaf).tobytes() == reader.read(leaf).tobytes(), leaf


def test_answers(folder, model):
    disk, log = folder / "disk", folder / "log"
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"some words {i}"}) + "\n" for i in range(12)))
    flags = [f"--model={model}", f"--prompts={prompts}", "--batch_size=4", "--max_new_tokens=24"]
    with contextlib.closing(Program("launch.generate", {})) as program:
        ends_well(program, [*flags, f"--out={folder / 'answers'}"], log)
        out = disk / "answers"
        line = ends_with_a_line(program, [*flags, f"--out={out}"], disk, ".answers.partial/content", 4096, log)
        assert f"{out} cannot be written" in line and not out.exists()
        ends_well(program, [*flags, f"--out={out}"], log)
        assert "answers of an interrupted start are kept" in log.read_text()
        assert_same_files(folder / "answers", out)
        assert sorted(path.name for path in disk.glob(".*")) == []

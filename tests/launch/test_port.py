import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ling_jax import data
from ling_jax.checkpoint import hf_writer, load_hf, orbax, save_hf
from ling_jax.checkpoint.folder import open_model
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.config import model_config
from ling_jax.model import model_spec
from ling_jax.spec import named_leaves
from tests.helpers.faults import ROOT
from tests.helpers.refusals import run_each
from tests.helpers.tiny import FAMILIES, random_params, tiny_config


def port(source, target, *more):
    command = [sys.executable, "-m", "launch.port", f"--source={source}", f"--target={target}", *more]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def ports(folder, *pairs):
    """Ports one after another, for one start of the program: (source, target) are names of folders in `folder`."""
    return run_each(
        "launch.port", [[f"--source={folder / source}", f"--target={folder / target}"] for source, target in pairs]
    )


def tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(path)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hf_to_orbax_to_hf_keeps_every_byte(tmp_path, family, dtype, monkeypatch):
    config = tiny_config(family, compute_dtype=dtype, mtp_depth=1, vocab_size=263)
    params = random_params(config, dtype=jnp.dtype(dtype))
    monkeypatch.setattr(hf_writer, "MAX_SHARD_BYTES", 10_000)  # so that there is an index
    save_hf(params, config, tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    data.save_tokenizer(data.train_bpe(["words"], 263), tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    if dtype == "float32" and family == "2.6":  # through the program once, the rest through its functions
        for done in ports(tmp_path, ("hf", "run"), ("run", "back")):
            assert done.returncode == 0, done.stderr
        assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (tmp_path / "hf" / "tokenizer.json").read_bytes()
        for folder in ("hf", "run", "back"):
            assert open_model(tmp_path / folder).template.source == "{{ messages }}"
    else:
        orbax.save_params(tmp_path / "run" / "checkpoints", *load_hf(tmp_path / "hf"))
        save_hf(*orbax.load_params(tmp_path / "run" / "checkpoints"), tmp_path / "back")
    wanted, found = tensors(tmp_path / "hf"), tensors(tmp_path / "back")
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        assert tensor.dtype == found[name].dtype and tensor.tobytes() == found[name].tobytes(), name
    assert load_hf(tmp_path / "back")[1] == load_hf(tmp_path / "hf")[1]


def test_another_dtype_is_cast_and_the_bias_of_experts_stays_wide(tmp_path):
    config = tiny_config(compute_dtype="float32")
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "hf")
    assert port(tmp_path / "hf", tmp_path / "run", "--dtype=bfloat16").returncode == 0
    params, ported = orbax.load_params(tmp_path / "run" / "checkpoints")
    assert ported.compute_dtype == "bfloat16"
    moe = next(run["ffn"] for run in params["segments"]["0"].values() if "router" in run["ffn"])
    assert moe["expert_bias"].dtype == np.float32 and moe["router"].dtype == jnp.bfloat16


def test_official_folders_come_back_with_all_tensors_and_keys(golden, tmp_path):
    """Hugging Face -> Orbax -> Hugging Face, side files and all."""
    names = sorted(path.parent.name for path in golden.glob("*/config.json"))
    assert len(names) >= 5
    there = [(golden / name, f"run/{name}") for name in names]
    back = [(f"run/{name}", f"back/{name}") for name in names]
    for done in ports(tmp_path, *there, *back):
        assert done.returncode == 0, done.stderr
    for name in names:
        source, back = golden / name, tmp_path / "back" / name
        wanted, found = tensors(source), tensors(back)
        assert wanted.keys() == found.keys()
        for tensor in wanted:
            assert wanted[tensor].dtype == found[tensor].dtype, f"{name}: {tensor}"
            assert wanted[tensor].tobytes() == found[tensor].tobytes(), f"{name}: {tensor}"
        keys, kept = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
        assert {key: kept.get(key, "missing") for key in keys} == keys, name
        assert (back / "meta.json").read_bytes() == (source / "meta.json").read_bytes()


def test_a_port_reports_what_is_not_finite(tmp_path):
    """In both directions, and it goes on."""
    config = tiny_config(compute_dtype="float32")
    params = random_params(config, dtype="float32")
    params["head"][0, :3] = np.nan
    save_hf(params, config, tmp_path / "hf")
    directions = ports(tmp_path, ("hf", "run"), ("run", "back"))
    for done, name in zip(directions, ("lm_head.weight (3)", "head (3)"), strict=True):
        assert done.returncode == 0 and f"3 weights are NaN or infinite, in {name}" in done.stderr
        assert done.stderr.count("warning") == 1
    assert np.isnan(load_hf(tmp_path / "back")[0]["head"][0, :3]).all()


def test_what_files_can_hold_is_one_line_and_exit_code_2(tmp_path):
    config = tiny_config(compute_dtype="float32")
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "hf")
    index, weights = "model.safetensors.index.json", "model.safetensors"
    cases = {
        "config.json": (b"[" * 200_000, "is not JSON"),
        index: (b"[" * 200_000, "is not JSON"),
        weights: (b"\x40\x0d\x03\0\0\0\0\0" + b"[" * 200_000, "is not a whole safetensors file"),
        "index": (json.dumps({"weight_map": {"a": "../b.safetensors"}}).encode(), "leaves the folder"),
        "fp8": (None, "config.json: quantization_config is gptq of 4 bits"),
    }
    for name, (content, _) in cases.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "hf", folder)
        if content is None:
            fields = json.loads((folder / "config.json").read_text())
            fields["quantization_config"] = {"quant_method": "gptq", "bits": 4}
            content, name = json.dumps(fields).encode(), "config.json"
        (folder / {"index": index}.get(name, name)).write_bytes(content)
    flags = [[f"--source={tmp_path / name}", f"--target={tmp_path / 'target'}"] for name in cases]
    for done, (_, message) in zip(run_each("launch.port", flags), cases.values(), strict=True):
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["hf", *cases])


def test_what_flags_cannot_mean_is_refused_before_the_work(tmp_path):
    config = tiny_config(compute_dtype="float32")
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "hf")
    (tmp_path / "file").touch()
    new = f"--target={tmp_path / 'a/b'}"
    cases = {
        "step": ([new, "--step=3"], "--step=3: .* is no run's workdir"),
        "no number": ([new, "--max_host_gb=nan"], "--max_host_gb=nan is no amount of memory"),
        "no end": ([new, "--max_host_gb=inf"], "--max_host_gb=inf is no amount of memory"),
        "no end of shards": ([new, "--shard_gb=1e300"], r"--shard_gb=1e\+300 is no amount of memory or disk"),
        "no MTP": ([new, "--nomtp"], "--nomtp is of --layers=N"),
        "a pattern": ([f"--target={tmp_path / 'run[1]'}"], r"Orbax cannot save below .*/run\[1\]: its name has"),
        "unknown user": (["--source=~nobody_here/x", new], "~nobody_here/x holds neither"),
        "inside of the source": ([f"--target={tmp_path / 'hf' / 'run'}"], "is inside of .*hf, which is read"),
        "below a file": ([f"--target={tmp_path / 'file' / 'x'}"], "file is not a folder"),
        "long": ([f"--target={tmp_path / ('x' * 300)}"], "File name too long"),
    }
    results = run_each("launch.port", [[f"--source={tmp_path / 'hf'}", *flags] for flags, _ in cases.values()])
    for done, (_, message) in zip(results, cases.values(), strict=True):
        assert done.returncode == 2 and re.search(message, done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "hf"]


def test_side_files_that_an_export_could_not_read_are_refused_on_the_way_in(tmp_path):
    config = tiny_config(compute_dtype="float32", vocab_size=262)
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "hf")
    data.save_tokenizer(data.train_bpe(["words"], 263), tmp_path / "hf")
    shutil.copytree(tmp_path / "hf", tmp_path / "pointer")
    (tmp_path / "pointer" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    cases = {"hf": "has ids up to 262 .*; the model's vocabulary is 262 tokens", "pointer": "is a git-lfs pointer"}
    flags = [[f"--source={tmp_path / name}", f"--target={tmp_path / 'target'}"] for name in cases]
    for done, message in zip(run_each("launch.port", flags), cases.values(), strict=True):
        assert done.returncode == 2 and re.search(message, done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "pointer"]


def test_bad_folders_are_named_and_nothing_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    done = port(tmp_path / "empty", tmp_path / "target")
    assert done.returncode == 2 and "holds neither checkpoints/ (a run's workdir) nor *.safetensors" in done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    done = port(tmp_path / "empty", tmp_path / "full")
    assert done.returncode == 2 and "exists and is not empty" in done.stderr
    assert not (tmp_path / "target").exists()


FP8 = ["--dtype=float8", "--verify"]


def test_plans_refusals_and_verification(tmp_path):
    config = tiny_config(compute_dtype="float32")
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "hf")
    command = [f"--source={tmp_path / 'hf'}", f"--target={tmp_path / 'run'}"]
    cases = [
        (["--dry_run", "--max_host_gb=16"], 0, "the least --max_host_gb is 0.91"),
        (["--max_host_gb=0.5"], 2, "--max_host_gb=0.5 is too little memory; the least that works is 0.91"),
        (["--step=3"], 2, "is no run's workdir and has no checkpoints; leave --step out"),
        (["--layers=3"], 2, "--layers=3: the first layers of this model"),
        ([command[0].replace("source", "target")], 2, "is the source; name a new folder"),
        (["--target=s3://bucket/run"], 2, "s3://bucket/run: s3:// is not supported; name a local path"),
        (["--dtype=float8"], 2, "--dtype=float8 is of Hugging Face targets"),
        (["--verify"], 0, "verified: 127 tensors"),
        ([f"--source={tmp_path / 'run'}", f"--target={tmp_path / 'fp8'}", *FP8], 0, "of them rounded to float8"),
        (["--verify"], 0, "verified: 127 tensors"),
        (["--verify", "--layers=2"], 2, "is of another model"),
        ([], 2, "exists and is not empty"),
    ]
    for (_, code, message), done in zip(
        cases, run_each("launch.port", [[*command, *more] for more, *_ in cases]), strict=True
    ):
        assert done.returncode == code and message in done.stdout + done.stderr, done
        assert code == 0 or done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp8", "hf", "run"]
    assert "quantization_config" in json.loads((tmp_path / "fp8" / "config.json").read_text())


def test_two_models_are_compared_on_the_same_tokens(tmp_path):
    config = tiny_config(num_layers=2, compute_dtype="float32")
    params = random_params(config, dtype="float32")
    save_hf(params, config, tmp_path / "a")
    params["segments"]["0"]["1_mla_moe"]["mixer"]["out"][0, 0, 1, 2, 3] += 1e-3
    save_hf(params, config, tmp_path / "b")
    wide = tiny_config(num_layers=2, vocab_size=41, compute_dtype="float32")
    save_hf(random_params(wide, dtype="float32"), wide, tmp_path / "checkpoints" / "7")  # no checkpoint of a run
    shutil.copytree(tmp_path / "a", tmp_path / "texts")
    data.save_tokenizer(data.train_bpe(["words"], 263), tmp_path / "texts")
    a, b, other, texts = (str(tmp_path / name) for name in ("a", "b", "checkpoints/7", "texts"))
    cases = [
        ([], 2, "name --source and --target, or two models to --compare"),
        ([f"--compare={a}"], 2, "name two models, A,B"),
        ([f"--compare={a},{b}", f"--source={a}"], 2, "--source is of a port, not of --compare; leave it out"),
        ([f"--compare={a},{b}", "--step=3"], 2, "leave it out; a checkpoint of a workdir is named WORKDIR/checkpoints"),
        ([f"--source={a}", f"--target={a}2", "--tokens=8"], 2, "--tokens is of --compare, not of a port"),
        ([f"--compare={a},{other}"], 2, "cannot be compared layer by layer: vocab_size is 40 and 41"),
        ([f"--compare={a},{tmp_path / 'none'}"], 2, "holds neither checkpoints/"),
        ([f"--compare={a},{b}", "--prompt=words"], 2, "has a tokenizer.json for --prompt; leave it out"),
        ([f"--compare={a},{texts}", "--prompt=words"], 2, "texts/tokenizer.json; the models' vocabulary is 40"),
        ([f"--compare={a},{b}", "--tokens=16"], 0, "the first part that departs: layer 1 (mla, moe), whose own error"),
    ]
    for (_, code, message), done in zip(cases, run_each("launch.port", [flags for flags, *_ in cases]), strict=True):
        assert done.returncode == code and message in done.stdout + done.stderr, done
        assert code == 0 or (done.stderr.count("\n") == 1 and not done.stdout)
    assert (
        f"A {a}, B {b}; 16 tokens" in done.stdout and "layer 0           lightning, dense  0         0" in done.stdout
    )


@pytest.mark.slow
def test_a_comparison_holds_a_layer_of_each_model(tmp_path):
    """Twice as many layers take hardly more memory, and less than a model has."""
    fields = dict(hidden_size=256, expert_ffn_size=512, num_experts=16, vocab_size=1000, num_expert_groups=4)
    peaks = []
    for layers in (20, 40):
        config = tiny_config(num_layers=layers, compute_dtype="float32", **fields)
        save_hf(random_params(config, dtype="float32"), config, tmp_path / str(layers))
        nbytes = (tmp_path / str(layers) / "model.safetensors").stat().st_size
        peaks.append(peak_memory([f"--compare={tmp_path / str(layers)},{tmp_path / str(layers)}"], 600))
        print(f"{layers} layers, {nbytes / 1e9:.2f} GB each: {peaks[-1] / 1e9:.2f} GB of memory")
    assert peaks[1] - peaks[0] < 0.1 * nbytes and peaks[1] < 0.5 * nbytes


@pytest.mark.slow
def test_the_plan_of_1t_is_made_from_headers_alone(tmp_path):
    """Of files that have the real headers and no blocks on the disk."""
    config, folder = model_config("ling-2.6-1t"), tmp_path / "hf"
    folder.mkdir()
    dtypes = dict.fromkeys(named_leaves(model_spec(config)), np.dtype(ml_dtypes.bfloat16))
    writer = HfWriter(folder, config, dtypes)
    for shard in writer.shards:
        with (folder / shard.file).open("wb") as file:
            file.write(shard.header())
            file.truncate(len(shard.header()) + shard.nbytes)
    done = port(folder, tmp_path / "run", "--dry_run", "--max_host_gb=16")
    assert done.returncode == 0, done.stderr
    assert "60199 tensors, 2.05 TB to write" in done.stdout
    assert re.search(r"the least --max_host_gb is \d\.\d\d\n", done.stdout)
    assert re.search(r"disk: \d+\.\d\d GB too little\n", done.stdout)
    assert re.search(r"time: .* at \d+ MB/s, measured here on a few batches\n", done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.slow
def test_a_port_holds_less_than_its_model_and_survives_kills(tmp_path):
    """1.3 GB through the least memory that is allowed, with kills on the way."""
    fields = dict(hidden_size=1024, expert_ffn_size=1024, num_experts=32, vocab_size=20_000, num_expert_groups=4)
    config = tiny_config(num_layers=6, compute_dtype="float32", **fields)
    save_hf(random_params(config, dtype="float32"), config, tmp_path / "hf")
    flags = ["--max_host_gb=1.11", "--shard_gb=0.2"]
    for source, target in (("hf", "run"), ("run", "back")):
        command = [f"--source={tmp_path / source}", f"--target={tmp_path / target}", *flags]
        peaks, seconds = [], 8
        while not (tmp_path / target).exists():
            peaks.append(peak_memory(command, seconds))
            seconds *= 1.5
        assert max(peaks) < 1.11e9, peaks
    for file in (tmp_path / "hf").glob("*.safetensors"):
        wanted = safetensors.numpy.load_file(file)
    found = tensors(tmp_path / "back")
    assert wanted.keys() == found.keys()
    assert all(tensor.tobytes() == found[name].tobytes() for name, tensor in wanted.items())


def peak_memory(flags, seconds):
    """Of anonymous pages, in bytes, until the program ends or is killed."""
    program = subprocess.Popen([sys.executable, "-m", "launch.port", *flags], cwd=ROOT)
    end, peak = time.monotonic() + seconds, 0
    while program.poll() is None and time.monotonic() < end:
        found = re.findall(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{program.pid}/status").read_text())
        peak = max([peak, *(1024 * int(value) for value in found)])
        time.sleep(0.05)
    program.kill()
    program.wait()
    return peak

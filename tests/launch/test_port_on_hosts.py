"""Several processes port one model: each writes its part, and together they leave what one leaves alone."""

import sys

import numpy as np
import pytest

from ling_jax.checkpoint import hf_writer, load_hf, orbax, save_hf
from ling_jax.checkpoint.layers import open_layers
from ling_jax.checkpoint.manifest import read, verify
from ling_jax.checkpoint.names import IGNORED
from ling_jax.checkpoint.orbax_parts import OrbaxWriter
from ling_jax.checkpoint.parts import TreeReader
from ling_jax.checkpoint.transfer import transfer
from ling_jax.spec import named_leaves
from tests.helpers.damage import files_below
from tests.helpers.hf_folders import read_tensors
from tests.helpers.refusals import run_each
from tests.helpers.tiny import assert_trees_equal, random_params, tiny_config
from tests.launch.test_many_hosts import Program, free_port, wait_for

# 26 MB, of which processes take 16 in turn.
CONFIG = tiny_config("2.6", mtp_depth=1, compute_dtype="float32", hidden_size=64, vocab_size=50_000)


def port(count, *ports):
    """`launch.port` in so many processes, with the flags of one port after the other."""
    flags = []
    for one in ports:
        address = f"--coordinator=localhost:{free_port()}"
        flags += [[*one, address, f"--num_hosts={count}", f"--host={host}"] for host in range(count)]
    done = run_each("launch.port", flags, together=count)
    assert [program.returncode for program in done] == [0] * len(done), "".join(program.stderr for program in done)
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A Hugging Face folder of many shards and a licence."""
    folder = tmp_path_factory.mktemp("source") / "hf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf_writer, "MAX_SHARD_BYTES", 30_000)
        save_hf(random_params(CONFIG, dtype="float32"), CONFIG, folder)
    (folder / "LICENSE").write_text("free")
    return folder


@pytest.mark.slow
def test_two_processes_leave_what_one_leaves_both_ways(source, tmp_path):
    to_run = [f"--source={source}", f"--target={tmp_path / 'run'}", "--verify"]
    to_back = [f"--source={tmp_path / 'run'}", f"--target={tmp_path / 'back'}", "--shard_gb=0.00003"]
    first, second, *_ = port(2, to_run, to_back)
    assert f"{source} -> {tmp_path / 'run'}" in first.stdout and "->" not in second.stdout
    assert "verified: " in first.stdout
    checkpoint = tmp_path / "run" / "checkpoints" / "0"
    assert verify(checkpoint)
    files = read(checkpoint)["files"]
    assert 0.4 < sum(file["bytes"] for name, file in files.items() if "process_1/" in name) / 26e6 < 0.6
    assert_trees_equal(orbax.load_params(tmp_path / "run" / "checkpoints")[0], load_hf(source)[0])
    wanted, found = files_below(source), files_below(tmp_path / "back")
    assert {name: found[name] for name in wanted} == wanted
    assert not list(tmp_path.glob(".*"))


def programs_of(count, log, *flags, each=lambda host: (), env=lambda host: {}, shell=lambda host: ""):
    """Real programs; `shell` is what bash does first in one of them."""
    log.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "launch.port", "--host_timeout=20", f"--coordinator=localhost:{free_port()}"]
    found = []
    for host in range(count):
        one = [*command, *flags, f"--num_hosts={count}", f"--host={host}", *each(host)]
        one = ["bash", "-c", f'{shell(host)} exec "$@"', "bash", *one]
        found.append(Program(one, log / f"{host}", env(host)))
    return found


def assert_one_line(program, *parts):
    assert program.stderr.count("\n") == 1 and all(part in program.stderr for part in parts), program.stderr


@pytest.mark.slow
@pytest.mark.parametrize("form", ["orbax", "hf"])
def test_a_process_that_is_killed_ends_all_and_any_number_goes_on(tmp_path, form):
    config = tiny_config("2.6", compute_dtype="float32", hidden_size=64, vocab_size=500_000)  # 260 MB
    params = random_params(config, dtype="float32")
    reader = TreeReader(params, config)
    if form == "orbax":
        save_hf(params, config, tmp_path / "source")
        pattern = "checkpoints/0/state/ocdbt.process_1/d/*"
    else:
        transfer(reader, OrbaxWriter(tmp_path / "source" / "checkpoints", config, reader.dtypes))
        pattern = "*.safetensors*"
    flags = [f"--source={tmp_path / 'source'}", f"--target={tmp_path / 'target'}", "--shard_gb=0.00005"]
    first, second = programs_of(2, tmp_path / "logs", *flags)
    wait_for(lambda: any((tmp_path / ".target.partial").glob(pattern)), first, second)
    second.process.kill()
    assert first.returncode == 1
    assert_one_line(first, "error: host 1 (", "no sign of life in 20 seconds", "; host 0 (")
    assert not (tmp_path / "target").exists()
    programs = programs_of(3, tmp_path / "logs", *flags)
    assert [program.returncode for program in programs] == [0, 0, 0], [program.stderr for program in programs]
    found = open_layers(tmp_path / "target")  # compares a checkpoint with its manifest
    for leaf, value in named_leaves(params).items():
        assert found.read(leaf).tobytes() == value.tobytes(), leaf
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_a_process_that_fails_ends_all_with_one_line(source, tmp_path):
    run, target = tmp_path / "run", tmp_path / "back"
    port(1, [f"--source={source}", f"--target={run}"])
    flags = [f"--source={run}", f"--target={target}", "--shard_gb=0.005"]
    limit = {0: "ulimit -f 1000;", 1: ""}  # kB of a file
    first, second = programs_of(2, tmp_path / "logs", *flags, shell=limit.get)
    assert (first.returncode, second.returncode) == (2, 1)
    assert_one_line(first, "error: ", "cannot be written: File too large", "the same command continues from there")
    assert_one_line(second, "error: host 0 (", "File too large", "; host 1 (")
    port(2, flags)
    assert_trees_equal(load_hf(target)[0], load_hf(source)[0])


@pytest.mark.slow
def test_processes_that_would_not_do_the_same_are_refused(source, tmp_path):
    flags, each = [f"--source={source}", f"--target={tmp_path / 'run'}"], {0: (), 1: ("--dtype=bfloat16",)}
    for program in programs_of(2, tmp_path / "logs", *flags, each=each.get):
        assert program.returncode == 2
        assert "dtype: None on host 0, 'bfloat16' on host 1 (" in program.stderr
    homes = {host: {"HOME": str(tmp_path / f"home_{host}")} for host in (0, 1)}
    flags = [f"--source={source}", "--target=~/run"]
    first, second = programs_of(2, tmp_path / "logs", *flags, env=homes.get)
    assert (first.returncode, second.returncode) == (1, 2)
    assert_one_line(second, ".run.partial lacks the files that host 0 wrote there; name a target that all hosts share")
    assert not (tmp_path / "home_0" / "run").exists() and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_official_models_go_through_two_processes_bit_for_bit(golden, tmp_path):
    """Hugging Face -> Orbax -> Hugging Face -> Orbax, and to FP8 and back, which changes nothing the second time."""
    models = sorted(path.parent for path in golden.glob("*/config.json"))
    assert len(models) >= 5
    ways = [("", "run", []), ("run", "back", ["--shard_gb=0.0001"]), ("back", "again", [])]
    ways += [("run", "fp8", ["--dtype=float8"]), ("fp8", "from_fp8", []), ("from_fp8", "fp8_again", ["--dtype=float8"])]

    def folder(model, name):
        return tmp_path / model.name / name if name else model

    flags = [
        [f"--source={folder(model, source)}", f"--target={folder(model, target)}", *more]
        for model in models
        for source, target, more in ways
    ]
    port(2, *flags)
    for model in models:
        official, back = read_tensors(model), read_tensors(folder(model, "back"))
        assert back.keys() == {name for name in official if not IGNORED.search(name)}
        assert all(official[name].tobytes() == tensor.tobytes() for name, tensor in back.items())
        wanted, _ = load_hf(model)
        for name in ("run", "again"):
            assert_trees_equal(orbax.load_params(folder(model, name) / "checkpoints")[0], wanted)
        fp8, again = (files_below(folder(model, name)) for name in ("fp8", "fp8_again"))
        assert fp8["model.safetensors"] == again["model.safetensors"]
        for leaf, value in named_leaves(load_hf(folder(model, "fp8"))[0]).items():
            exact = np.asarray(named_leaves(wanted)[leaf], np.float32)
            error = np.abs(np.asarray(value, np.float32) - exact)  # half of 2^-3, or of the smallest code
            assert (error <= np.maximum(np.abs(exact) * 2**-4, np.abs(exact).max() / 448 * 2**-10) * 1.02).all(), leaf

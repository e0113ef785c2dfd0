"""What a port takes is known beforehand, and an interruption loses little."""

import gc
import os
import resource
import threading

import numpy as np
import pytest

from ling_jax.checkpoint import chunks, load_hf, orbax, port, transfer
from ling_jax.checkpoint.first_layers import FirstLayers
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.orbax_parts import OrbaxWriter
from ling_jax.checkpoint.parts import TreeReader
from ling_jax.config import model_config
from ling_jax.model import model_spec
from ling_jax.preflight import stored_bytes
from ling_jax.spec import count, named_leaves
from tests.helpers.tiny import FAMILIES, assert_trees_equal, random_params, tiny_config

CONFIG = tiny_config("2.6", mtp_depth=1, compute_dtype="float32")


@pytest.fixture
def small_batches(monkeypatch):
    """So that a tiny model takes many of them, and its matrices several bands."""
    monkeypatch.setattr(transfer, "BATCH_BYTES", 3000)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 300)


class Interrupted(BaseException):
    pass


class Stop:
    """Progress that interrupts the work after some batches; never if 0."""

    def __init__(self, after):
        self.left = after

    def __call__(self, nbytes):
        self.left -= 1
        if self.left == 0:
            raise Interrupted


@pytest.mark.parametrize("form", ["hf", "orbax"])
def test_an_interrupted_port_goes_on_and_ends_with_the_same_bytes(tmp_path, small_batches, form):
    reader = TreeReader(random_params(CONFIG, dtype="float32"), CONFIG)

    def move(folder, progress):
        if form == "hf":
            writer = HfWriter(folder, CONFIG, reader.dtypes, max_shard_bytes=10_000)
        else:
            writer = OrbaxWriter(folder, CONFIG, reader.dtypes)
        left = [b for b in transfer.bands(reader, CONFIG, reader.dtypes) if not writer.is_written(b.leaf, b.index)]
        transfer.transfer(reader, writer, progress=progress)
        return len(left)

    (tmp_path / "whole").mkdir()
    every, lefts = move(tmp_path / "whole", Stop(0)), []
    for after in (3, 4, 5):
        with pytest.raises(Interrupted):
            fill(tmp_path / "out", {}, end=lambda partial: move(partial, Stop(after)))  # noqa: B023
    fill(tmp_path / "out", {}, end=lambda partial: lefts.append(move(partial, Stop(0))))
    assert not (tmp_path / ".out.partial").exists()
    if form == "hf":
        files = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    else:
        assert_trees_equal(orbax.load_params(tmp_path / "out")[0], orbax.load_params(tmp_path / "whole")[0])
    assert 0 < lefts[0] < every


def fill(target, record, *, resume=True, end=lambda partial: None):
    with port.resumable_folder(target, record, resume=resume) as partial:
        end(partial)


def interrupt(partial):
    raise Interrupted


def test_a_port_of_another_source_is_not_gone_on_with(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(Interrupted):
        fill(target, {"dtype": None}, end=interrupt)
    with pytest.raises(ValueError, match=r"another dtype: None, now 'bfloat16'; continue with that, or .* --noresume"):
        fill(target, {"dtype": "bfloat16"})
    with port.resumable_folder(target, {"dtype": "bfloat16"}, resume=False) as partial:
        with pytest.raises(OSError, match="is being written by another process"):
            fill(target, {"dtype": "bfloat16"})
        (partial / "file").touch()
    assert [path.name for path in target.iterdir()] == ["file"]


def test_a_source_that_changed_is_named_by_its_file(tmp_path):
    source = tmp_path / "hf"
    (source / "more").mkdir(parents=True)
    for name in ("config.json", "a.safetensors", "more/b.safetensors"):
        (source / name).write_bytes(b"1234")
    (source / "gone.safetensors").symlink_to("nowhere")  # a link of an incomplete download that no index names
    with pytest.raises(Interrupted):
        fill(tmp_path / "out", port.source_identity(source, None), end=interrupt)
    (source / "more" / "b.safetensors").write_bytes(b"12345")
    with pytest.raises(ValueError, match=r"another file more/b\.safetensors: '4 bytes .*, now '5 bytes "):
        fill(tmp_path / "out", port.source_identity(source, None))


def test_holes_of_a_shard_are_space_that_is_missing_still(tmp_path):
    with (tmp_path / "shard").open("wb") as file:
        file.truncate(10**9)
    assert stored_bytes([tmp_path]) < 10**6


def test_no_thread_works_on_after_an_interruption(tmp_path, small_batches):
    reader = TreeReader(random_params(CONFIG, dtype="float32"), CONFIG)
    writer = OrbaxWriter(tmp_path, CONFIG, reader.dtypes)
    with pytest.raises(Interrupted) as raised:
        transfer.transfer(reader, writer, threads=2, progress=Stop(2))
    assert raised.traceback and not [t for t in threading.enumerate() if "ThreadPoolExecutor" in t.name]


def test_a_write_that_fails_is_named_and_closes_its_files(tmp_path, small_batches):
    """A limit of file sizes stands for a full disk; the same port then goes on."""
    params = random_params(CONFIG, dtype="float32")
    reader = TreeReader(params, CONFIG)
    before, limits = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (10, 3000):  # within a header, within a tensor
        writer = HfWriter(tmp_path, CONFIG, reader.dtypes, max_shard_bytes=4000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match=r"model-\d+-of-\d+\.safetensors cannot be written: File too large"):
                transfer.transfer(reader, writer, threads=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        del writer
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
    transfer.transfer(reader, HfWriter(tmp_path, CONFIG, reader.dtypes, max_shard_bytes=4000), threads=2)
    assert_trees_equal(load_hf(tmp_path)[0], params)


def test_a_folder_of_the_user_is_not_gone_on_with(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "notes").touch()
    with pytest.raises(ValueError, match="is no interrupted output"):
        fill(tmp_path / "out", {})
    assert (tmp_path / ".out.partial" / "notes").exists()


@pytest.fixture(scope="module")
def one_t():
    """A reader of headers alone."""
    config = model_config("ling-2.6-1t")
    leaves = {path: np.dtype("V2") for path in named_leaves(model_spec(config))}
    reader = TreeReader.__new__(TreeReader)
    reader.config, reader.dtypes = config, leaves
    return reader


@pytest.mark.slow
def test_1t_goes_through_16_gb(one_t):
    config = one_t.config
    plan = port.make_plan(one_t, config, one_t.dtypes, 16 * port.GB, cpus=32)
    assert plan.nbytes == 2 * count(model_spec(config)) > 2e12
    assert plan.num_tensors == 60_199  # 76 x (256 + 1) x 3 of experts, and the others
    assert plan.min_bytes < 2 * port.GB and plan.memory <= 16 * port.GB and plan.threads > 8
    with pytest.raises(ValueError, match=r"--max_host_gb=1 is too little memory; the least that works is 1\.\d\d$"):
        port.make_plan(one_t, config, one_t.dtypes, 10**9, cpus=1)


def test_bands_are_every_number_once(small_batches):
    reader = TreeReader(random_params(CONFIG, dtype="float32"), CONFIG)
    seen = {path: np.zeros(leaf.shape, int) for path, leaf in named_leaves(model_spec(CONFIG)).items()}
    for band in transfer.bands(reader, CONFIG, reader.dtypes):
        seen[band.leaf][band.index] += 1
        assert band.nbytes == 4 * seen[band.leaf][band.index].size
    assert all((times == 1).all() for times in seen.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layers_are_a_model(tmp_path, family):
    config = tiny_config(family, num_layers=6, mtp_depth=1, compute_dtype="float32")
    reader = TreeReader(random_params(config, dtype="float32"), config)
    for mtp in (True, False):
        small = FirstLayers(reader, 4, mtp=mtp)
        folder = tmp_path / str(mtp)
        folder.mkdir()
        transfer.transfer(small, HfWriter(folder, small.config, small.dtypes))
        params, found = load_hf(folder)
        assert (found.num_layers, found.mtp_depth) == (4, int(mtp))
        for number in range(4):
            assert_trees_equal(TreeReader(params, found).layer(number), reader.layer(number))
        if mtp:
            assert_trees_equal(TreeReader(params, found).layer(4), reader.layer(6))


def test_a_number_of_layers_that_makes_another_model_is_refused():
    config = tiny_config("2.6", num_layers=4)
    with pytest.raises(ValueError, match=r"--layers=3: .* of the same kinds of layers for 2, 4$"):
        FirstLayers(TreeReader(random_params(config), config), 3, mtp=True)


def test_progress_is_a_line_that_can_be_searched_for(monkeypatch, capsys):
    """The rate is that of this process, and the time is for what is left."""
    clock = iter([0.0, 4.0, 11.0, 12.0, 40.0])
    monkeypatch.setattr(port.time, "monotonic", lambda: next(clock))
    progress = port.Progress(10 * port.GB, written=4 * port.GB)
    for _ in range(4):
        progress(port.GB)
    assert capsys.readouterr().out.splitlines() == [
        "progress: 6.00 of 10.00 GB, 182 MB/s, 22 s left",
        "progress: 8.00 of 10.00 GB, 100 MB/s, 20 s left",
    ]

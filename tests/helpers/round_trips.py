"""Models from Hugging Face folders to Orbax and back, on the meshes of so many simulated devices. Run as a program: the
number of devices is fixed when JAX starts.

    python -m tests.helpers.round_trips DEVICES MESHES FOLDER…      # twice; at most so many meshes of each model
    python -m tests.helpers.round_trips ADDRESS INDEX TARGET FOLDER…      # one of two processes of a device each
"""

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from ling_jax.checkpoint import hf_tensors, load_hf, manifest, orbax, save_hf
from ling_jax.checkpoint.hf import load_hf_config
from ling_jax.model import model_spec
from ling_jax.parallel.sharding import make_mesh, shardings
from ling_jax.spec import named_leaves
from tests.helpers.hf_folders import read_tensors

MESHES = {
    1: [{}],
    2: [{"fsdp": 2}, {"expert": 2}, {"tensor": 2}],
    4: [{"fsdp": 4}, {"expert": 4}, {"fsdp": 2, "expert": 2}, {"data": 2, "tensor": 2}],
    8: [{"expert": 8}, {"fsdp": 2, "expert": 2, "tensor": 2}, {"data": 2, "fsdp": 4}, {"fsdp": 2, "context": 4}],
}


def round_trip(source: Path, mesh: jax.sharding.Mesh) -> None:
    """Hugging Face -> Orbax -> Hugging Face -> Orbax: no bit of any tensor differs."""
    wanted, config = load_hf(source)
    with tempfile.TemporaryDirectory() as folder:
        params, back = load_hf(source, mesh=mesh)[0], Path(folder, "back")
        for name in ("first", "second"):
            orbax.save_params(f"{folder}/{name}", params, config)
            restored, found = orbax.load_params(f"{folder}/{name}", mesh=mesh)
            assert found == config
            if name == "first":
                save_hf(restored, config, back)
                params, found = load_hf(back, mesh=mesh)
                assert found == config
        assert_same_bits(named_leaves(restored), named_leaves(wanted))
        tensors = read_tensors(back)
        official = read_tensors(source)
        assert_same_bits(tensors, {name: official[name] for name in tensors})
        assert tensors.keys() == hf_tensors(wanted, config).keys()


def assert_same_bits(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for name, leaf in wanted.items():
        value = np.asarray(found[name])
        assert value.dtype == leaf.dtype and value.shape == leaf.shape and value.tobytes() == leaf.tobytes(), name


def save_and_restore(source: Path, mesh: jax.sharding.Mesh, target: Path) -> None:
    """Hugging Face -> Orbax by two processes, of which each reads and writes what its device holds."""
    wanted, config = load_hf(source)
    orbax.save_params(target, load_hf(source, mesh=mesh)[0], config)
    written = manifest.read(target / "0")["files"]
    assert all(any(f"process_{index}/d/" in name for name in written) for index in (0, 1))
    restored, found = orbax.load_params(target, mesh=mesh)
    assert found == config
    for name, leaf in named_leaves(restored).items():
        for shard in leaf.addressable_shards:
            part = named_leaves(wanted)[name][shard.index]
            assert shard.data.dtype == part.dtype and np.asarray(shard.data).tobytes() == part.tobytes(), name


def on_meshes(devices: int, most: int, sources: list[Path], check: Callable[[Path, jax.sharding.Mesh], None]) -> None:
    for source in sources:
        fits, config = 0, load_hf_config(source)
        for sizes in MESHES[devices][:most]:
            mesh = make_mesh(sizes)
            try:
                placed = named_leaves(shardings(model_spec(config), mesh))
            except ValueError as error:  # this model cannot be split so
                print(f"{source.name} {sizes}: {error}")
                continue
            assert devices == 1 or any(not sharding.is_fully_replicated for sharding in placed.values())
            check(source, mesh)
            fits += 1
            print(f"equal {source.name} {sizes}", flush=True)
        assert fits, f"{source} fits no mesh"


def main(first: str, second: int, *rest: str) -> None:
    if ":" in first:
        jax.distributed.initialize(first, 2, second, cluster_detection_method="deactivate")
        targets = (Path(rest[0], str(number)) for number in itertools.count())
        on_meshes(2, 3, list(map(Path, rest[1:])), lambda source, mesh: save_and_restore(source, mesh, next(targets)))
    else:
        jax.config.update("jax_num_cpu_devices", int(first))
        on_meshes(int(first), second, list(map(Path, rest)), round_trip)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])

"""Fixtures that all tests share."""

import gzip
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from hypothesis import settings

from ling_jax.paths import as_path
from tests.helpers.gcs_emulator import BUCKET, emulator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax

# Compiling dominates the time of the tests; without LLVM's optimiser it takes a third, and means the same. Set but
# empty, XLA_FLAGS leaves programs as users get them, which is how `make test-slow` runs.
QUICK: dict[str, object] = {"xla_backend_optimization_level": 0}
DEFAULT: dict[str, object] = {"xla_backend_optimization_level": 3}
if jax.__version_info__ < (0, 11):  # later ones have no such option
    QUICK["xla_cpu_use_fusion_emitters"], DEFAULT["xla_cpu_use_fusion_emitters"] = False, True
os.environ.setdefault("XLA_FLAGS", " ".join(f"--{name}={value}" for name, value in QUICK.items()))

# A shared machine can take any time over one example; how long a test may take is not what it promises.
settings.register_profile("ling_jax", deadline=None)
settings.load_profile("ling_jax")

FIXTURES = Path(__file__).parent / "fixtures"


def golden_folder() -> Path:
    """Official numbers as stored: $LING_JAX_GOLDEN, or tests/fixtures, whose README describes the files."""
    folder = Path(os.environ.get("LING_JAX_GOLDEN", FIXTURES)).resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"LING_JAX_GOLDEN: no folder {folder}; tests/fixtures/README.md says what it holds")
    return folder


@pytest.fixture(scope="module", autouse=True)
def free_programs():
    """A module's compiled programs are of no use to the next, and hold gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Starts of runs within a module share their compiled programs."""
    from tests.helpers.compiled import shared_between_starts  # with all of training, which few modules need

    with shared_between_starts(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(scope="session")
def golden(tmp_path_factory) -> Path:
    """Official numbers, unpacked: every model's folder has model.safetensors and grads.json."""
    folder = tmp_path_factory.mktemp("golden")
    shutil.copytree(golden_folder(), folder, copy_function=os.symlink, dirs_exist_ok=True)
    for packed in folder.glob("*/weights.npz"):
        with np.load(packed) as weights:
            tensors = weights["header"].tobytes() + weights["planes"].T.tobytes()
        packed.with_name("model.safetensors").write_bytes(tensors)
    for packed in folder.glob("*/grads.json.gz"):
        packed.with_name("grads.json").write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """Public data sets: $LING_JAX_DATA, or shared/data beside the checkout."""
    folder = Path(os.environ.get("LING_JAX_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip("no data sets: set LING_JAX_DATA to a folder that has gsm8k/ and bfcl/")
    return folder


@pytest.fixture(scope="session")
def object_store(tmp_path_factory) -> dict[str, str]:
    """The emulator of Google Cloud Storage, in the place of the service for this process; its environment."""
    with emulator(tmp_path_factory.mktemp("objects")) as environment:
        os.environ.update(environment)
        yield environment


@pytest.fixture
def gs(object_store) -> epath.Path:
    """A new folder of a bucket."""
    return as_path(f"gs://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def x64():
    """float64 on for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """The text files of `helpers.small_run`."""
    from tests.helpers.small_run import write_corpus  # after the flags above are set

    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder

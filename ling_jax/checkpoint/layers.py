"""Opens a model on disk with the reader of its format."""

from etils import epath

from ling_jax.checkpoint.hf_reader import HfReader
from ling_jax.checkpoint.index import is_workdir
from ling_jax.checkpoint.orbax_parts import OrbaxReader
from ling_jax.checkpoint.parts import Reader
from ling_jax.paths import as_path


def open_layers(path: epath.PathLike, step: int | None = None, *, verify: bool = True) -> Reader:
    """The reader of a run's workdir (checkpoints/) or a Hugging Face folder; `verify` as in `orbax.load_config`.

    Raises as `load_hf` and `orbax.load_config`.
    """
    folder = as_path(path)
    return OrbaxReader(folder / "checkpoints", step, verify=verify) if is_workdir(folder) else HfReader(folder)

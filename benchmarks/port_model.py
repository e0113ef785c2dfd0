"""A model of random numbers in the real layout of Ling-2.6-flash, written without being held: for `benchmarks.port`.

Tensors have the shapes of the release; layers and experts are fewer, so that the size fits (and the rows of the router
with them).
"""

import threading
from pathlib import Path
from statistics import NormalDist

import ml_dtypes
import numpy as np

from ling_jax.checkpoint.chunks import Index
from ling_jax.checkpoint.hf_writer import HfWriter
from ling_jax.checkpoint.parts import Reader
from ling_jax.checkpoint.transfer import transfer
from ling_jax.config import ModelConfig, model_config
from ling_jax.model.transformer import model_spec
from ling_jax.spec import count, named_leaves

NAME = "ling-2.6-flash"
LAYERS = (8, 4, 2)  # one of them MLA, the others Lightning; the release has 32
LEAST_EXPERTS = 4
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHARD_BYTES = 2 * 10**9


def sized_config(nbytes: int) -> ModelConfig:
    """The model of about so many bytes with the most layers, then the most experts.

    Where not even the fewest layers fit, the vocabulary is cut. Raises ValueError where nothing fits.
    """
    vocabulary = model_config(NAME).vocab_size
    shapes = [(vocabulary, layers) for layers in LAYERS] + [(vocabulary // n, LAYERS[-1]) for n in (2, 4, 8)]
    for vocab_size, layers in shapes:
        configs = (_config(vocab_size, layers, experts) for experts in (LEAST_EXPERTS, LEAST_EXPERTS + 1))
        least, more = (BFLOAT16.itemsize * count(model_spec(config)) for config in configs)
        if least <= nbytes:
            return _config(vocab_size, layers, LEAST_EXPERTS + round((nbytes - least) / (more - least)))
    raise ValueError(f"{nbytes / 1e9:g} GB are too few: the smallest model of this layout has {least / 1e9:.2f} GB")


def _config(vocab_size: int, layers: int, experts: int) -> ModelConfig:
    fewer = dict(vocab_size=vocab_size, num_layers=layers, layer_group_size=layers, num_experts=experts)
    return model_config(NAME, **fewer, num_expert_groups=1, top_groups=1, top_k=2)


def write_model(folder: Path, config: ModelConfig, *, threads: int, seed: int = 0) -> None:
    """A Hugging Face folder as exports are, in files of `SHARD_BYTES`."""
    folder.mkdir(parents=True)
    reader = RandomReader(config, seed)
    transfer(reader, HfWriter(folder, config, reader.dtypes, max_shard_bytes=SHARD_BYTES), threads=threads)
    (folder / "README.md").write_text("Random numbers.\n")


class RandomReader(Reader):
    """Normal numbers: a compressor finds as much in them as in a model's weights."""

    def __init__(self, config: ModelConfig, seed: int):
        leaves = named_leaves(model_spec(config))
        super().__init__(config, dict.fromkeys(leaves, BFLOAT16))
        self._shapes = {path: leaf.shape for path, leaf in leaves.items()}
        self._seeds, self._lock = np.random.SeedSequence(seed), threading.Lock()
        normal = NormalDist(0, config.init_std)
        self._quantiles = np.array([normal.inv_cdf((i + 0.5) / 2**16) for i in range(2**16)]).astype(BFLOAT16)

    def read(self, leaf: str, index: Index = ()) -> np.ndarray:
        """Other numbers at every call: which part gets which depends on the order of the threads."""
        shape = np.broadcast_to(False, self._shapes[leaf])[index].shape
        with self._lock:
            (seed,) = self._seeds.spawn(1)
        return self._quantiles[np.random.default_rng(seed).integers(2**16, size=shape, dtype=np.uint16)]

    def report_nonfinite(self, where: str = "") -> None:
        """Nothing is: all are quantiles."""

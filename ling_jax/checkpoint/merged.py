"""A weighted sum of models of one run, computed part by part, so that memory never holds a whole model."""

from collections.abc import Sequence

import numpy as np

from ling_jax.checkpoint.chunks import Index
from ling_jax.checkpoint.parts import Reader


class MergedReader(Reader):
    """Σ_j coefficients[j] · readers[j], summed in float64; config and dtypes are the first's.

    Raises ValueError where the models or their dtypes differ.
    """

    def __init__(self, readers: Sequence[Reader], coefficients: Sequence[float]):
        first = readers[0]
        for number, reader in enumerate(readers):
            if (reader.config, reader.dtypes) != (first.config, first.dtypes):
                raise ValueError(f"checkpoint {number} is not of the model of the first; merge checkpoints of one run")
        self._terms = list(zip(coefficients, readers, strict=True))
        super().__init__(first.config, first.dtypes)

    def read(self, leaf: str, index: Index = ()) -> np.ndarray:
        total = sum(c * reader.read(leaf, index).astype(np.float64) for c, reader in self._terms)
        return np.asarray(total, self.dtypes[leaf])

    def report_nonfinite(self, where: str = "") -> None:
        for _, reader in self._terms:
            reader.report_nonfinite(where)

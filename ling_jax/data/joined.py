"""Rows that join several shorter rows, so that short and long sequences are in batches of one length."""

import dataclasses

import numpy as np

from ling_jax.data.packing import PackedRows
from ling_jax.data.sources import TokenDocuments


@dataclasses.dataclass(frozen=True, eq=False)
class JoinedRows:
    """Row i joins rows i·n to i·n + n - 1 of `rows`, n = `count`; segments of different rows stay distinct.

    Random access as in `PackedRows`. Rows after the last whole group of n are not used.
    """

    rows: PackedRows
    count: int

    def __len__(self) -> int:
        return len(self.rows) // self.count

    @property
    def documents(self) -> TokenDocuments:
        return self.rows.documents

    @property
    def sequence_length(self) -> int:
        return self.rows.sequence_length * self.count

    @property
    def num_tokens(self) -> int:
        return self.rows.num_tokens

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        parts, segments = [self.rows[i * self.count + j] for j in range(self.count)], 0
        for part in parts:
            part["segment_ids"] = np.where(part["segment_ids"] > 0, part["segment_ids"] + segments, 0)
            segments = max(segments, int(part["segment_ids"].max()))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

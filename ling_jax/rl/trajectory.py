"""What one rollout leaves behind: its tokens, and under which weights and with which probability each was drawn."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ling_jax.messages import nearest

# running: not ended yet; finished: the policy or its environment ended it; truncated: a limit did, or words that are no
# answer in the chat template's form; env_failed: the environment raised on an action, or gave no valid result;
# infra_failed: the machinery failed (a deadline, a session that was lost, a template that rewrites history). The last
# two say nothing about the policy, and such a trajectory has no reward.
STATUSES = ("running", "finished", "truncated", "env_failed", "infra_failed")
FAILED = ("env_failed", "infra_failed")
# Of the tree of an agent's calls (ling_jax.serve.calls): what is a sample, and which branches are learnt from.
SAMPLES = ("concat", "individual")
BRANCHES = ("main", "all")
FIRST_CAPACITY = 64  # tokens; our choice


class VersionRun(NamedTuple):
    """Neighbouring completion tokens that came under one weight version."""

    version: int
    count: int


class Trajectory:
    """A prompt and its completion so far, which grows in place; T tokens of completion.

    The log-probs are those of the policy that drew the token, as the engine recorded them, and stay what they were
    when a later version goes on (Ling 2.6 report §4.2.1). Observations are part of the completion with loss mask 0,
    log-prob 0 and the version that was current when they came.

    A token costs amortised constant time: the arrays double when they are full. Arrays that were given out keep their
    values; what was appended later is not in them.

    Experts that an engine recorded, where a run asks for them, are those of the first tokens of the context; the last
    drawn token has none until it is read. A token keeps the experts of the weights that read it first: a drawn token is
    predicted from the experts with which it was drawn, whatever version that was. Newer weights read the context again,
    and their choice for it is not kept: behind the tokens that they draw, the older ones have other experts in training
    than they had in generation.
    """

    def __init__(self, task_id: str, prompt_ids: Sequence[int]):
        self.task_id = task_id
        self.prompt_ids = tuple(prompt_ids)
        self.runs: list[VersionRun] = []
        self.turns: list[tuple[int, int]] = []  # [start, stop) of each of the policy's turns in the completion
        self.drawn = 0  # tokens that the policy wrote
        self._status = "running"
        self._size = 0
        self._ids = np.zeros(FIRST_CAPACITY, np.int32)
        self._logps = np.zeros(FIRST_CAPACITY, np.float32)
        self._experts: np.ndarray | None = None  # [capacity, L, k]
        self.num_recorded = 0  # first tokens of the context whose experts are recorded

    @property
    def status(self) -> str:
        """One of `STATUSES`. Setting another one raises ValueError."""
        return self._status

    @status.setter
    def status(self, status: str) -> None:
        if status not in STATUSES:
            found = f"{status!r}{nearest(str(status), STATUSES)}"
            raise ValueError(f"{self._where}: status is {found}; expected one of {', '.join(STATUSES)}")
        self._status = status

    @property
    def completion_ids(self) -> np.ndarray:
        """[T] int32."""
        return _read_only(self._ids[: self._size])

    @property
    def behaviour_logps(self) -> np.ndarray:
        """[T] float32."""
        return _read_only(self._logps[: self._size])

    @property
    def versions(self) -> np.ndarray:
        """[T] int32: the weight version of each token; they never fall."""
        versions, counts = zip(*self.runs, strict=True) if self.runs else ((), ())
        return np.repeat(np.array(versions, np.int32), np.array(counts, np.int64))

    @property
    def loss_mask(self) -> np.ndarray:
        """[T] bool: whether the policy drew the token."""
        mask = np.zeros(self._size, bool)
        for start, stop in self.turns:
            mask[start:stop] = True
        return mask

    @property
    def experts(self) -> np.ndarray | None:
        """[n, L, k] integers: the experts that each of the first n tokens of the context went to in L MoE layers; None
        where none were recorded."""
        return None if self._experts is None else _read_only(self._experts[: self.num_recorded])

    @property
    def context(self) -> list[int]:
        """Prompt and completion."""
        return [*self.prompt_ids, *self.completion_ids.tolist()]

    def __len__(self) -> int:
        """Tokens of the completion."""
        return self._size

    def append_generation(self, token_ids: Sequence[int], behaviour_logps: Sequence[float], version: int) -> None:
        """Adds tokens [n] that weights `version` drew, and their log-probs [n]; they go on with the turn, or open one.

        Raises ValueError on lengths that differ, versions that fall, log-probs that are not finite, and where the
        trajectory has ended; nothing is added then.
        """
        logps = np.asarray(behaviour_logps, np.float32)
        if logps.shape != (len(token_ids),):
            raise ValueError(
                f"{self._where}: behaviour_logps has shape {logps.shape} for {len(token_ids)} tokens; expected one "
                "entry for each token"
            )
        if not np.isfinite(logps).all():
            t = int(np.argmin(np.isfinite(logps)))
            found = f"behaviour_logps[{self._size + t}] is {logps[t]}"
            raise ValueError(f"{self._where}: {found}; a drawn token has a finite one")
        start = self._size
        self._append(token_ids, logps, version)
        if not len(token_ids):
            return
        if self.turns and self.turns[-1][1] == start:
            start = self.turns.pop()[0]
        self.turns.append((start, self._size))
        self.drawn += len(token_ids)

    def append_observation(self, token_ids: Sequence[int], version: int) -> None:
        """Adds tokens [n] that no policy drew (tool output, the next turn's opening). Errors as `append_generation`."""
        self._append(token_ids, np.zeros(len(token_ids), np.float32), version)

    def append_experts(self, experts: np.ndarray) -> None:
        """Adds the experts [n, L, k] of the context's next n tokens.

        Raises ValueError on another dtype, L or k than before, and where the context has fewer tokens; nothing is added
        then.
        """
        start, tokens = self.num_recorded, len(self.prompt_ids) + self._size
        size = start + len(experts)
        if size > tokens:
            raise ValueError(f"{self._where}: experts of {size} tokens, and the context has {tokens}")
        if self._experts is None:
            self._experts = np.zeros((max(size, FIRST_CAPACITY), *experts.shape[1:]), experts.dtype)
        before, found = ((str(x.dtype), x.shape[1:]) for x in (self._experts, experts))
        if found != before:
            raise ValueError(f"{self._where}: experts are {found}, those before {before}: the model is another one")
        self._experts = _grown(self._experts, start, size)
        self._experts[start:size] = experts
        self.num_recorded = size

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; arrays are base64 of their little-endian bytes, a tenth as long as numbers."""
        experts = self._experts_json()
        return ({} if experts is None else {"experts": experts}) | {
            "task_id": self.task_id,
            "prompt_ids": list(self.prompt_ids),
            "completion_ids": _packed(self.completion_ids),
            "behaviour_logps": _packed(self.behaviour_logps),
            "runs": [list(run) for run in self.runs],
            "turns": [list(turn) for turn in self.turns],
            "status": self.status,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Trajectory":
        """The trajectory that `to_json` gave. Raises ValueError where the parts do not fit together."""
        trajectory = cls(record["task_id"], record["prompt_ids"])
        ids, logps = _unpacked(record["completion_ids"], "<i4"), _unpacked(record["behaviour_logps"], "<f4")
        _check_parts(ids, logps, record, trajectory._where)
        trajectory._reserve(len(ids))
        trajectory._ids[: len(ids)], trajectory._logps[: len(ids)] = ids, logps
        trajectory._size = len(ids)
        trajectory.runs = [VersionRun(*run) for run in record["runs"]]
        trajectory.turns = [(start, stop) for start, stop in record["turns"]]
        trajectory.drawn = sum(stop - start for start, stop in trajectory.turns)
        trajectory.status = record["status"]
        if stored := record.get("experts"):
            experts = _unpacked(stored["values"], stored["dtype"])
            trajectory.append_experts(experts.reshape(-1, *stored["layers_and_k"]))
        return trajectory

    def _experts_json(self) -> dict[str, Any] | None:
        if self._experts is None:
            return None
        return {
            "values": _packed(self.experts),
            "dtype": self._experts.dtype.newbyteorder("<").str,
            "layers_and_k": list(self._experts.shape[1:]),
        }

    @property
    def _where(self) -> str:
        return f"trajectory of task {self.task_id!r}"

    def _append(self, token_ids: Sequence[int], logps: np.ndarray, version: int) -> None:
        if self.status != "running":
            raise ValueError(f"{self._where} is {self.status}; only a running one grows")
        last = self.runs[-1].version if self.runs else 0
        if version < last:
            raise ValueError(f"{self._where}: version {version} comes after {last}; expected numbers that never fall")
        count = len(token_ids)
        if not count:
            return
        self._reserve(self._size + count)
        self._ids[self._size : self._size + count] = token_ids
        self._logps[self._size : self._size + count] = logps
        self._size += count
        if self.runs and version == last:
            count += self.runs.pop().count
        self.runs.append(VersionRun(version, count))

    def _reserve(self, size: int) -> None:
        self._ids, self._logps = (_grown(array, self._size, size) for array in (self._ids, self._logps))


def _grown(array: np.ndarray, used: int, size: int) -> np.ndarray:
    """The array where it has room for `size` entries, else a copy of its first `used` ones in one twice as large, or
    more."""
    capacity = len(array)
    while capacity < size:
        capacity *= 2
    if capacity == len(array):
        return array
    grown = np.zeros((capacity, *array.shape[1:]), array.dtype)
    grown[:used] = array[:used]
    return grown


def _read_only(view: np.ndarray) -> np.ndarray:
    view.flags.writeable = False
    return view


def _packed(array: np.ndarray) -> str:
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()


def _unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def _check_parts(ids: np.ndarray, logps: np.ndarray, record: Mapping[str, Any], where: str) -> None:
    size = len(ids)
    for name, found in (
        ("behaviour_logps", len(logps)),
        ("runs", sum(count for _, count in record["runs"])),
    ):
        if found != size:
            raise ValueError(f"{where}: {name} covers {found} tokens, completion_ids {size}; expected as many")
    edges = [edge for turn in record["turns"] for edge in turn]
    if edges != sorted(set(edges)) or (edges and not 0 <= edges[0] < edges[-1] <= size):
        raise ValueError(f"{where}: turns are {record['turns']}; expected spans in order within {size} tokens")

"""Verdicts that are remembered: models of one run often give the same answer, and a group's answers end together."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

from ling_jax.envs.base import InfraError
from ling_jax.envs.coding.verdict import Verdict


class Memory:
    """The newest `most` complete verdicts by key, for threads. What is being judged is waited for, not judged twice."""

    def __init__(self, most: int):
        self.most, self._lock = most, threading.Lock()
        self._kept: dict[bytes, Verdict] = {}
        self._running: dict[bytes, Future[Verdict]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forgets all verdicts."""
        with self._lock:
            self._kept.clear()

    def verdict(self, key: bytes, judge: Callable[[], Verdict]) -> Verdict:
        """That of the key, which `judge` gives where none is known.

        One that is not complete is not kept, nor given to those who wait for it: the machine may be at fault. They then
        judge for themselves, as where another's `judge` raises InfraError.
        """
        with self._lock:
            if key in self._kept:
                return self._kept[key]
            others = self._running.get(key)
            future = self._running.setdefault(key, Future())
        if others is not None:
            try:
                verdict = others.result()
            except InfraError:
                return judge()
            return verdict if verdict.complete else judge()
        try:
            verdict = judge()
        except BaseException as error:
            future.set_exception(error if isinstance(error, InfraError) else InfraError("what judged was interrupted"))
            raise
        else:
            future.set_result(verdict)
            self._keep(key, verdict)
            return verdict
        finally:
            with self._lock:
                del self._running[key]

    def _keep(self, key: bytes, verdict: Verdict) -> None:
        if not verdict.complete:
            return
        with self._lock:
            self._kept[key] = verdict
            while len(self._kept) > self.most:
                del self._kept[next(iter(self._kept))]

"""Processes that divide work, played by threads: the same messages without JAX's coordination service."""

import concurrent.futures
import json
import threading
from collections.abc import Callable
from typing import Any

from ling_jax.distributed.peers import Peers

SECONDS = 120  # until a thread that waits gives up, such as for one that has failed


class _Board:
    """What all threads see."""

    def __init__(self, count: int):
        self.barrier = threading.Barrier(count)
        self.changed = threading.Condition()
        self.posted: dict[str, str] = {}
        self.gathered: dict[int, str] = {}


class ThreadPeers(Peers):
    """One of several threads; values go through JSON, as between processes."""

    board: _Board

    def gather(self, value: Any, what: str) -> list[Any]:
        self.board.gathered[self.index] = json.dumps([what, value])
        self.board.barrier.wait(SECONDS)
        found = [json.loads(self.board.gathered[index]) for index in range(self.count)]
        self.board.barrier.wait(SECONDS)
        assert {name for name, _ in found} == {what}, "threads do not wait for the same"
        return [value for _, value in found]

    def post(self, value: Any, what: str) -> None:
        with self.board.changed:
            assert what not in self.board.posted, f"{what} is posted twice"
            self.board.posted[what] = json.dumps(value)
            self.board.changed.notify_all()

    def take(self, what: str) -> Any:
        with self.board.changed:
            assert self.board.changed.wait_for(lambda: what in self.board.posted, SECONDS), f"{what} never came"
            return json.loads(self.board.posted.pop(what))


def run_together(count: int, work: Callable[[Peers], Any]) -> list[Any]:
    """The results of `work` in so many threads, in order. Nobody leaves a message unread."""
    board, peers = _Board(count), [ThreadPeers(index, count) for index in range(count)]
    for one in peers:
        object.__setattr__(one, "board", board)

    def work_or_end_all(one: Peers) -> Any:
        try:
            return work(one)
        except BaseException:
            board.barrier.abort()
            raise

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        results = [done.result() for done in [pool.submit(work_or_end_all, one) for one in peers]]
    assert not board.posted, f"unread: {sorted(board.posted)}"
    return results

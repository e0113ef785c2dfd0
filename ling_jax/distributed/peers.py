"""Work that the processes of a program divide: each does its share, and all learn what the others found.

Everything goes through the key-value store of JAX's coordination service, which `hosts.join` starts and watches: where
a process fails or dies the others end, so nothing here has a time-out of its own.
"""

import collections
import dataclasses
import json
from collections.abc import Iterable
from typing import Any

import jax
from jax._src.distributed import global_state  # the coordination service has no public name

LONGEST_SECONDS = 7 * 24 * 3600  # of work that others wait for; while it goes on there is no reason to give up
LONGEST_MS = 1000 * LONGEST_SECONDS
TAKE_MS = 2000  # of one request in `take`; a signal is handled between two of them
_uses: collections.Counter[str] = collections.Counter()  # of each `what`: the service knows no key twice


@dataclasses.dataclass(frozen=True)
class Peers:
    """This process and those that work with it. A process alone does everything, at once.

    `gather`, `raise_in_all`, `first` and `wait` are called by all of them, in the same order for the same `what`;
    threads that call at the same time need another `what`. `post` and `take` are for two of them.
    """

    index: int = 0
    count: int = 1

    def share(self, items: Iterable[Any]) -> list[Any]:
        """This process's items, of which each belongs to one process."""
        return list(items)[self.index :: self.count]

    def gather(self, value: Any, what: str) -> list[Any]:
        """The JSON values of all processes, in their order; a barrier."""
        if self.count == 1:
            return [value]
        _uses[what] += 1
        client, key = global_state.client, f"ling_jax/peers/{what}/{_uses[what]}"
        client.key_value_set(f"{key}/{self.index}", json.dumps(value))
        client.wait_at_barrier(f"{key} written", LONGEST_MS)
        found = {int(name.rpartition("/")[2]): text for name, text in client.key_value_dir_get(f"{key}/")}
        client.wait_at_barrier(f"{key} read", LONGEST_MS)
        client.key_value_delete(f"{key}/{self.index}")
        return [json.loads(found[index]) for index in range(self.count)]

    def raise_in_all(self, error: Exception | None, kind: type[Exception], what: str) -> None:
        """Raises the error that this process or another found, if any, as `kind`; a barrier."""
        for text in self.gather(None if error is None else str(error), what):
            if text is not None:
                raise kind(text)

    def first(self, value: Any, what: str) -> Any:
        """The JSON value of process 0; that of the others counts for nothing."""
        return self.gather(None if self.index else value, what)[0]

    def wait(self, what: str) -> None:
        """Until all processes are here."""
        self.gather(None, what)

    def post(self, value: Any, what: str) -> None:
        """Leaves a JSON value for the one process that will `take` the same `what`, and goes on."""
        global_state.client.key_value_set(f"ling_jax/posted/{what}", json.dumps(value))

    def take(self, what: str) -> Any:
        """The value that another process posted as `what`; it waits for it."""
        key = f"ling_jax/posted/{what}"
        while True:
            try:
                text = global_state.client.blocking_key_value_get(key, TAKE_MS)
                break
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
        global_state.client.key_value_delete(key)
        return json.loads(text)


ALONE = Peers()


def all_peers() -> Peers:
    """All processes that were joined (`hosts.join`)."""
    return Peers(global_state.process_id, global_state.num_processes)

"""One of two hosts of which host 1 reads a fifo that nobody fills, and host 0 waits for it: `DIR PORT HOST`."""

import sys

from jax._src.distributed import global_state

from ling_jax.distributed import hosts
from ling_jax.distributed.rendezvous import ProcessInfo
from ling_jax.run.watchdog import watch_steps


def read_a_fifo(folder: str) -> None:
    with open(f"{folder}/fifo") as file:
        file.read()


def wait_for_the_other() -> None:
    global_state.client.wait_at_barrier("never", 3_600_000)


def main() -> None:
    folder, port, host = sys.argv[1], sys.argv[2], int(sys.argv[3])
    hosts.join(ProcessInfo(f"localhost:{port}", 2, host), {}, 60)
    with watch_steps(folder, 5 if host else 500) as ended:  # host 0 learns of it from host 1
        for _ in range(5):
            ended()
        read_a_fifo(folder) if host else wait_for_the_other()


if __name__ == "__main__":
    main()

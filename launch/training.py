"""The start and the end of programs that train, on one host or on many."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags

from launch.flags import define_checks
from launch.interrupts import Stopped
from ling_jax.checkpoint.orbax import DamagedCheckpoint, SaveFailed
from ling_jax.distributed import hosts
from ling_jax.distributed.peers import LONGEST_SECONDS
from ling_jax.distributed.rendezvous import facts, find_process
from ling_jax.paths import store_errors
from ling_jax.run.steps import Interrupted, TooManyNonfiniteSteps
from pallas_kernels.lightning_attention.self_check import KernelError

define_checks()
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "of several hosts (processes): address:port of host 0, else JAX_COORDINATOR_ADDRESS; SLURM, Open MPI and TPU pods "
    "name it by themselves",
)
NUM_HOSTS = flags.DEFINE_integer("num_hosts", None, "how many there are, else JAX_NUM_PROCESSES")
HOST = flags.DEFINE_integer("host", None, "which of them this is, from 0, else JAX_PROCESS_ID")
HOST_TIMEOUT = flags.DEFINE_float(
    "host_timeout", 180, "seconds until a host that does not come, or gives no sign of life, ends the others", 4
)
flags.register_validator(
    "host_timeout", lambda seconds: seconds <= LONGEST_SECONDS, "expected at most 604800 seconds, a week"
)


TRAINING_ERRORS = (TooManyNonfiniteSteps, DamagedCheckpoint, SaveFailed, KernelError, ValueError, OSError)


def join_hosts(config: Any, **flags: Any) -> None:
    """Waits for the other hosts, if this process is one of several; all must have the same config, code and `flags`.

    Call it before any device is touched. Raises ValueError where a host does not come, or differs.
    """
    if process := find_process(COORDINATOR.value, NUM_HOSTS.value, HOST.value):
        hosts.join(process, facts(config, **flags), HOST_TIMEOUT.value)


def check_one_host(what: str) -> None:
    """Raises ValueError where this process is one of several."""
    if process := find_process(COORDINATOR.value, NUM_HOSTS.value, HOST.value):
        raise ValueError(f"{what} in one process, and this is one of {process.count}; start it once, on one host")


@contextlib.contextmanager
def starting_errors() -> Iterator[None]:
    """A block that prepares a run, inside `usage_errors`: an error of one host, or a signal to it, ends all hosts."""
    try:
        yield
    except Stopped as stopped:
        hosts.end_all(str(stopped), 128 + stopped.number)
        raise
    except Exception as error:
        hosts.fail(error, code=2)
        raise


@contextlib.contextmanager
def training_errors(*others: type[Exception]) -> Iterator[None]:
    """A block that trains: a signal ends the program with exit code 128 + its number, an error with 1.

    ValueError is an error of the data, the tasks or the rewards in the middle of a run; `others` are those of the
    program's own kind of run.
    """
    try:
        yield
    except Interrupted as stop:
        print(stop, flush=True)
        hosts.leave()
        sys.exit(128 + stop.number)
    except Stopped as stopped:  # before the first step
        hosts.end_all(str(stopped), 128 + stopped.number)
        raise
    except (*TRAINING_ERRORS, *others, *store_errors()) as error:
        hosts.fail(error)
        print("; ".join((f"error: {error}", *getattr(error, "__notes__", ()))), file=sys.stderr, flush=True)
        if isinstance(error, SaveFailed):  # threads of Orbax may still hold the exit, although `close` wakes them
            sys.stdout.flush()
            os._exit(1)
        sys.exit(1)
    except Exception as error:
        hosts.fail(error)
        raise
    hosts.leave()

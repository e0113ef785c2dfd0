"""How the programs that train end."""

import contextlib
import sys
from collections.abc import Iterator

from ling_jax.checkpoint.orbax import DamagedCheckpoint
from ling_jax.train.loop import Interrupted, TooManyBadSteps
from pallas_kernels.lightning_attention.self_check import KernelError


@contextlib.contextmanager
def training_errors() -> Iterator[None]:
    """Around a loop: a signal ends the program with 128 + its number, what stopped the training with 1.

    That is what the data, the tasks or the rewards turn out to be in the middle of a run, too: a ValueError.
    """
    try:
        yield
    except Interrupted as stop:
        print(stop, flush=True)
        sys.exit(128 + stop.number)
    except (TooManyBadSteps, DamagedCheckpoint, KernelError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(1)

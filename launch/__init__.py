"""Programs, run from a checkout: `python -m launch.NAME --help`."""

import os
import signal
import sys

from launch.early import check_start

if sys.argv[0] == "-m":  # a program begins, and its imports take seconds; not in a module that imports this package
    check_start()  # first: what follows needs a Python that is new enough

    from launch.interrupts import NUMBERS, end_at_once
    from launch.memory import check_address_space

    for number in NUMBERS:
        signal.signal(number, end_at_once)
    check_address_space()
    # XLA's own lines, such as of a slow compilation; its errors are exceptions all the same. JAX reads it as it loads.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

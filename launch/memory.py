"""Errors of too little memory: one line, with the needed amount if it is known, and exit code 2."""

import resource
import sys

ADDRESS_SPACE = 2.5e9  # bytes; measured: a training of the smallest model reserves 1.9 GB on 2 cores, more on many


def check_address_space() -> None:
    """Ends the program where `ulimit -v` is below the need of every program here: imports would fail or abort."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
        print(
            f"error: not enough memory: the limit of address space (ulimit -v) is {limit / 1e9:.2f} GB, and a program "
            f"here needs about {ADDRESS_SPACE / 1e9:.1f} GB and its model; raise it (ulimit -v unlimited)",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(2)


def out_of_memory(error: Exception) -> str:
    """The message for an error of too little memory; "" for other errors."""
    of_device = type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)
    if not isinstance(error, MemoryError) and not of_device:
        return ""
    reason = " ".join(str(error).split())[:300] or "the system gives no more"
    return f"not enough memory: {reason}; take a smaller model or batch, more devices, or raise the limit (ulimit -v)"

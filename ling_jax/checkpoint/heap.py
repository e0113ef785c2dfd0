"""How the C library's malloc keeps memory that is freed."""

import ctypes

# Options of glibc's mallopt (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Makes malloc take large arrays from one heap that does not shrink: the next array gets the pages of the last.

    By default each array of more than 32 MB is mapped anew and the system clears its pages: a fifth of the CPU time of
    a program that streams through arrays of 64 MB. Call it before threads start. Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1)):
        if mallopt is not None:
            mallopt(option, value)

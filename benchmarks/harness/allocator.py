"""Where glibc gets memory for large tensors, the same for everything that is timed.

A tensor of 32 MiB or more is fresh pages, whose faults cost more than a norm. A smaller one is, too, unless
the heap holds freed memory, and how much it holds depends on what ran before.
"""

import ctypes

# glibc's names for mallopt, and where both thresholds end in a process that has freed a large tensor
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MMAP_THRESHOLD_MAX = 32 * 2**20
_LIBC = ctypes.CDLL(None)


def settle() -> None:
    """Start where glibc's thresholds for fresh pages settle in a process that trains.

    They adapt to what has been freed, so that the same code took 12 or 27 ms depending on what ran before.
    """
    mallopt = getattr(_LIBC, "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_MAX)
        mallopt(M_TRIM_THRESHOLD, 2 * MMAP_THRESHOLD_MAX)


def trim() -> None:
    """Give back what the heap holds, so that the next call finds nothing that another one has freed."""
    malloc_trim = getattr(_LIBC, "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)

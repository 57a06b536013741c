"""Keeps the memory that a training step frees in the process."""

import ctypes


def keep_freed_memory() -> None:
    """Lets glibc keep what a step frees for the next one.

    Activations are so large that malloc maps and unmaps each of them. The page faults take a fifth of the
    processor time of a training step on a CPU.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # not glibc
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 256 * 2**20)

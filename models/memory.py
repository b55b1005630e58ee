"""How this process keeps the memory that it frees."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets glibc keep freed blocks for the next step, and torch ask for huge pages; called before tensors are made.

    Otherwise every page of a large tensor is a page fault in every step. On a virtual machine with two cores that took
    a tenth of a float32 step and a quarter of a bfloat16 step. The peak of the process
    was within 5 % of what it is otherwise.

    Returns:
        Whether there is a glibc to tell.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST))

"""What glibc does with the memory that PyTorch frees on a CPU."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>. One arena, no mmap for large blocks, no trimming: freed memory stays with the process.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_SETTINGS = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next allocation, from now on and for the whole process.

    By default glibc maps every block above 32 MiB anew and unmaps it when it is freed, so every large activation of a
    training step costs page faults again. The process keeps its peak memory until it ends.

    Returns:
        Whether the setting took effect; False without glibc, where nothing changes.

    Example:
        >>> kept = ssconv.keep_freed_memory()
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all(mallopt(option, value) == 1 for option, value in _SETTINGS)

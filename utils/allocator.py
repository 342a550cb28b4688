"""The C library's memory allocator, told to keep what training frees."""

import ctypes
import sys

# Parameters of glibc's mallopt, from its malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Keep large freed blocks in the process, where the C library is glibc; else do nothing.

    By default they go back to the system at once, and each activation's memory is mapped and
    zeroed page by page again: elementwise layers on CPU spend most of their time on that.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

"""The C library's allocator, set for models on the CPU."""

from __future__ import annotations

import ctypes
import sys

import numpy as np

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory instead of handing it back to the kernel; False where there is no glibc.

    Training and enhancement free and take tensors of megabytes by the hundred, each a new mapping otherwise whose pages
    fault one by one: a training step of 2.1 s became 1.3 s (``dpt``, eight 2 s crops, two cores), a folder took four
    fifths of the time (``dpt_complex``, float32, one core). All threads share one arena, since each would keep what it
    freed to itself: a folder took 20 to 37 MB less, in no more time. It concerns the whole process, so programs call
    it, not the library.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 512 << 20), (_M_ARENA_MAX, 1))
    return all(mallopt(option, value) == 1 for option, value in settings)


def expect_large_blocks() -> None:
    """Let glibc keep up to 32 MB of freed memory, by a block that is taken and given back at once.

    It takes a freed block for a sign that more of that size come and go, and hands less back to the kernel from then
    on: a window of ``dpt_complex`` took 3,500 to 10,000 page faults otherwise, a tenth of its time. Programs that go
    further call ``keep_freed_memory``.
    """
    np.empty(16 << 20, np.uint8)  # never touched

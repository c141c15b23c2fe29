"""What a process is told once, before it computes on a device."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def settle(device: str) -> None:
    """Set the process up for a device: what is the same for training, sampling and scoring."""
    import torch

    if device == "cpu":
        _keep_freed_memory()
    if device.startswith("cuda"):
        # cuDNN plans its attention anew for each shape; ours change at every step (4.6 times as long on an H100).
        torch.backends.cuda.enable_cudnn_sdp(False)


def release() -> None:
    """Give back the memory of what is no longer used: models in reference cycles, and what libraries keep of it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _keep_freed_memory() -> None:
    """Keep glibc from handing freed tensors back to the kernel, which zeroes their pages anew at the next step."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

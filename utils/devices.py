"""Devices: the one that was asked for, and images on it."""

from __future__ import annotations

import torch

from apq.errors import ApqError
from utils.allocator import keep_freed_memory


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name; `auto` is CUDA where it is there, else the CPU.

    The process keeps the memory that it frees from then on (see `utils.allocator`). Raises
    ApqError when torch does not know the device or cannot reach it.
    """
    keep_freed_memory()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        usable = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu"
        raise ApqError(f"--device {name} cannot be used here; try {usable}")
    return device


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move images (N, 3, S, S) and lay them out channels-last, which both CPU and GPU prefer."""
    return images.to(device, non_blocking=True, memory_format=torch.channels_last)

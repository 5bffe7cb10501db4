"""The process's memory, beside what PyTorch does with it."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def return_free_memory() -> None:
    """
    Hand freed memory back to the system that glibc keeps for later, scattered between what is in use. Called before
    the moment that needs the most it lowers the peak; glibc does it by itself only at the end of its heap. Takes some
    milliseconds; elsewhere than on Linux with glibc nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def reuse_activations(model: nn.Module) -> None:
    """Let a frozen autoencoder's SiLUs write over what they are given: a norm's results, which serve nothing else."""
    import torch

    for layer in model.modules():
        if isinstance(layer, torch.nn.SiLU):
            layer.inplace = True

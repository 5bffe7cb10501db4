"""The weights and inputs of the recorded numbers: every tensor is filled by its name, so that anyone can make them."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDENS = Path(__file__).parent / "goldens"


def draw(seed, *shape):
    """Standard normal numbers of a seed."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def filled(name, shape):
    """The tensor of an original state dict with this name and shape."""
    values = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).standard_normal(shape).astype(np.float32)
    leaf = name.split(".")[-1]
    if leaf == "running_var":
        values = 1 + 0.1 * np.abs(values)
    elif leaf in ("running_mean", "bias", "relative_position_bias_table"):
        values = 0.02 * values
    elif leaf == "complex_weight":
        values = 0.1 * values
    elif leaf == "W":
        values = 16 * values
    elif leaf == "logvar":
        values = 0 * values
    elif leaf == "g" or values.ndim == 1:
        values = 1 + 0.1 * values
    else:
        values = values / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def golden_state_dict(part):
    """The original's state dict `unet` or `vae`; integer buffers, which are constants or counters, are zero."""
    manifest = json.loads((GOLDENS / f"{part}_manifest.json").read_text())
    return {
        name: torch.zeros(entry[1], dtype=torch.int64) if entry[0] == "keep" else filled(name, entry[1])
        for name, entry in manifest.items()
    }

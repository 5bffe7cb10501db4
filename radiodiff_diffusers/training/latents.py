"""Latents of a whole data set on disk, so that training the diffusion model does not run the autoencoder.

Mean and standard deviation of the posterior are kept, so that each epoch draws its latents anew. With augmentation by
symmetries all eight variants are kept, for an autoencoder does not commute with them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .augment import SYMMETRIES, apply_symmetry
from .data import Samples, make_planes, noise_like, stack_samples

logger = logging.getLogger(__name__)


class LatentCache:
    """Reads what `build_latents` wrote: `read(index, turns, flip)` gives mean and standard deviation."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.about = json.loads((self.folder / "latents.json").read_text())
        self._file: np.memmap | None = None

    def read(self, index: int, turns: int = 0, flip: bool = False) -> tuple[np.ndarray, np.ndarray]:
        if self._file is None:  # opened in each worker by itself
            self._file = np.load(self.folder / "latents.npy", mmap_mode="r")
        variant = SYMMETRIES.index((turns, flip)) if self._file.shape[1] > 1 else 0
        mean, std = np.asarray(self._file[index, variant], np.float32)
        return mean, std

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}


def build_latents(
    folder: str | Path, vae: nn.Module, samples: Samples, accelerator, batch_size: int = 8, dtype: str = "float16"
) -> LatentCache:
    """Encode every sample once, or open the cache if it was made by this autoencoder from these data.

    The processes share the work; the file appears under its name when it is complete.
    """
    folder, config = Path(folder), samples.config
    if config.crop or config.horizontal_flip or config.streaming:
        raise ValueError(
            "latents cannot be cached with data.crop, data.horizontal_flip or data.streaming: turn one off"
        )
    about = {"fingerprint": fingerprint(vae, samples), "samples": len(samples), "dtype": dtype}
    if (folder / "latents.json").exists():
        cache = LatentCache(folder)
        if cache.about == about:
            return cache
        raise ValueError(
            f"{folder} holds latents of another autoencoder or data set: remove it, or name another folder"
        )
    symmetries = SYMMETRIES if config.symmetries else SYMMETRIES[:1]
    partial = folder / ".latents.npy"
    shape = _latent_shape(vae, samples, accelerator.device)
    if config.symmetries and shape[-1] != shape[-2]:
        raise ValueError("latents of oblong maps cannot be cached with data.symmetries: turn one off")
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        size = len(samples) * len(symmetries) * 2 * int(np.prod(shape)) * np.dtype(dtype).itemsize
        logger.info("caching %d latents in %s, %.2f GB", len(samples) * len(symmetries), folder, size / 1e9)
        np.lib.format.open_memmap(partial, "w+", dtype, (len(samples), len(symmetries), 2, *shape)).flush()
    accelerator.wait_for_everyone()
    file = np.lib.format.open_memmap(partial, "r+")
    mine = range(accelerator.process_index, len(samples), accelerator.num_processes)
    bar = tqdm(total=len(mine), desc="caching latents", disable=not accelerator.is_main_process)
    for first in range(0, len(mine), batch_size):
        part = mine[first : first + batch_size]
        pairs = [samples.source[i] for i in part]
        for variant, (turns, flip) in enumerate(symmetries):
            images = [make_planes(*apply_symmetry(*pair, turns, flip), config.image_channels) for pair in pairs]
            mean, std = posterior(vae, torch.from_numpy(np.stack(images)).to(accelerator.device))
            for i, m, s in zip(part, mean, std, strict=False):
                file[i, variant, 0], file[i, variant, 1] = m.cpu().numpy(), s.cpu().numpy()
        bar.update(len(part))
    bar.close()
    file.flush()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(partial, folder / "latents.npy")
        (folder / "latents.json").write_text(json.dumps(about))
    accelerator.wait_for_everyone()
    return LatentCache(folder)


@torch.no_grad()
def posterior(vae: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of what the autoencoder makes of images."""
    distribution = vae.encode(images).latent_dist
    return distribution.mean.float(), distribution.std.float()


def fingerprint(vae: nn.Module, samples: Samples) -> str:
    """Changes with the autoencoder's weights and with the data's configuration."""
    digest = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    kept = {k: v for k, v in asdict(samples.config).items() if k not in ("workers", "condition_channels")}
    digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _latent_shape(vae: nn.Module, samples: Samples, device) -> tuple[int, ...]:
    scene, radio_map = samples.source[0]
    planes = torch.from_numpy(make_planes(scene, radio_map, samples.config.image_channels))[None].to(device)
    return tuple(posterior(vae, planes)[0].shape[1:])


@torch.no_grad()
def measure_scale(encode, samples: Samples, count: int = 64, batch_size: int = 4) -> float:
    """1 / standard deviation of the posterior means' samples over some of the data."""
    total = squares = number = 0.0
    size = min(count, len(samples))
    for first in range(0, size, batch_size):
        batch = stack_samples([samples[(i, i)] for i in range(first, min(first + batch_size, size))])
        if batch["errors"]:
            continue
        posterior = encode(batch)
        latent = posterior.mean + posterior.std * noise_like(posterior.mean, batch, "scale")
        total += float(latent.double().sum())
        squares += float(latent.double().square().sum())
        number += latent.numel()
    if not number:
        raise ValueError("the latents' scale could not be measured: none of the first samples can be read")
    return float((squares / number - (total / number) ** 2) ** -0.5)

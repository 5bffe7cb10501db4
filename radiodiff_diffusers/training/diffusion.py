"""One step of diffusion training, as `examples/ldm` and `examples/lora` take it, and how their models are looked
at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..memory import return_free_memory
from . import losses
from .config import option
from .data import generators, noise_like
from .validation import scene_generators


@dataclass
class DiffusionLossConfig:
    weighting: bool = option(True, "weight drift and noise by time: 2 e^(1-t) and e^sqrt(t)")
    l1: bool = option(True, "(L2 + L1) / 2; false: L2")
    extra: dict[str, float] = option({}, "terms on the predicted map and their weights: gradient, ssim, helmholtz")
    mask_buildings: bool = option(False, "pixels in buildings do not count; for a model of pixels")
    mean_map: float = option(0.0, "share of the samples that train the mean map, one step from an empty start")


@torch.no_grad()
def clean_sample(batch: dict[str, Any], vae: nn.Module | None) -> Tensor:
    """What is diffused: the map itself, or a sample of its latent's posterior (from the cache, where there is one)."""
    if vae is None:
        return batch["image"]
    if "mean" in batch:
        mean, std = batch["mean"], batch["std"]
    else:
        return_free_memory()
        posterior = vae.encode(batch["image"]).latent_dist
        return_free_memory()
        mean, std = posterior.mean, posterior.std
    return (mean + std * noise_like(mean, batch, "posterior")).float() * vae.config.scaling_factor


def diffusion_step(
    unet: nn.Module, scheduler: Any, vae: nn.Module | None, batch: dict[str, Any], config: DiffusionLossConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one batch, and what to log."""
    x0 = clean_sample(batch, vae)
    noise = noise_like(x0, batch, "noise")
    # every sample draws its own time from its own generator, so that the batch around it does not matter
    t = torch.cat([scheduler.sample_timesteps(1, g) for g in generators(batch, "time")]).to(x0.device)
    x = scheduler.add_noise(x0, noise, t)
    if config.mean_map:
        empty = torch.cat([torch.rand(1, generator=g) for g in generators(batch, "mean_map")]) < config.mean_map
        empty = empty.to(x.device)
        t = torch.where(empty, torch.ones_like(t), t)
        empty = empty.view(-1, 1, 1, 1)
        x, noise = torch.where(empty, 0.0, x), torch.where(empty, 0.0, noise)
    drift, predicted_noise = unet(x, t, batch["condition"]).sample.float().chunk(2, dim=1)
    per_sample = losses.pair_loss(
        drift,
        predicted_noise,
        *scheduler.get_targets(x0, noise),
        weights=scheduler.loss_weights(t) if config.weighting else None,
        l1=config.l1,
        pixel_weight=batch["free"] if config.mask_buildings else None,
    )
    log = {"diffusion": per_sample.mean()}
    if config.extra:
        # the map predicted from here; it says little near t = 1, so it counts with 1 - t
        time = t.view(-1, 1, 1, 1)
        predicted = x - drift * time - predicted_noise * time.sqrt()
        if vae is not None:
            predicted = vae.decode(predicted / vae.config.scaling_factor).sample
        for name, term in losses.image_terms(config.extra, predicted, batch["image"], batch["free"]).items():
            per_sample = per_sample + (1 - t) * term
            log[name] = term.mean()
    return_free_memory()  # the backward pass is the moment of most memory
    return per_sample.mean(), log


def predict_maps(pipeline: Any, batch: dict[str, Any]) -> np.ndarray:
    """The pipeline's maps of a validation batch in [-1, 1], each from the same noise every time."""
    maps = pipeline(batch["condition"], generator=scene_generators(batch)).maps
    return np.stack([m.scale.to_unit(m.gain_db)[None] for m in maps])

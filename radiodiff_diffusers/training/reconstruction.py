"""Validation of a tokenizer while it trains: the same images each time, rebuilt from the mean of the posterior."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image

from ..evaluation.tokenizer import psnr, ssim, to_uint8
from . import losses
from .config import ValidationConfig
from .data import stack_samples
from .validation import fixed_samples, save_picture


class ReconstructionValidation:
    """Call it with the step. `rec_loss` is |x - r| averaged over pixels, plus LPIPS where there is one.

    `rebuild(batch)` gives (reconstruction, posterior); `align(batch, posterior)` gives further numbers, one tensor of
    a value an image each, and may be None.
    """

    picture_shows = "Each row: image, reconstruction, five times their difference."

    def __init__(
        self,
        samples,
        config: ValidationConfig,
        accelerator,
        folder: str | Path,
        rebuild: Callable[[dict[str, Any]], tuple[torch.Tensor, Any]],
        perceptual=None,
        align: Callable[[dict[str, Any], Any], dict[str, torch.Tensor]] | None = None,
    ):
        self.config, self.accelerator, self.folder = config, accelerator, Path(folder)
        self.rebuild, self.perceptual, self.align = rebuild, perceptual, align
        self.items = fixed_samples(samples, config.scenes) if config.steps else []

    def __call__(self, step: int) -> dict[str, Any]:
        mine = self.items[self.accelerator.process_index :: self.accelerator.num_processes]
        results = []
        for start in range(0, len(mine), self.config.batch_size):
            results += self._score(stack_samples(mine[start : start + self.config.batch_size]))
        results = sorted(gather_object(results), key=lambda r: r["number"])
        names = [n for n in results[0] if n not in ("number", "pictures")]
        scores = {name: float(np.mean([r[name] for r in results])) for name in names}
        picture = None
        if self.accelerator.is_main_process and self.config.pictures:
            rows = [np.concatenate(r["pictures"], axis=1) for r in results[: self.config.pictures]]
            picture = save_picture(Image.fromarray(np.concatenate(rows)), self.folder, step)
        about = {"images_seen": len(results), "images": picture, "picture_shows": self.picture_shows}
        return {**scores, **about}

    def _score(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        image = batch["image"].to(self.accelerator.device)
        reconstruction, posterior = self.rebuild(batch)
        reconstruction = reconstruction.float()
        error = losses.pixel_error(image, reconstruction, squared=False).flatten(1).mean(1)
        scores = {"psnr": psnr(image, reconstruction), "ssim": ssim(image, reconstruction), "rec_loss": error}
        if self.perceptual is not None:
            scores["perceptual"] = self.perceptual(image, reconstruction).flatten()
            scores["rec_loss"] = error + scores["perceptual"]
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        scores["kl_loss"] = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
        if self.align is not None:
            scores |= self.align(batch, posterior)
        columns = {name: value.double().cpu().tolist() for name, value in scores.items()}
        difference = (image - reconstruction).abs().mul(5).sub(1)
        pictures = [_pixels(x) for x in (image, reconstruction, difference)]
        return [
            {"number": number, **{k: v[i] for k, v in columns.items()}, "pictures": [p[i] for p in pictures]}
            for i, number in enumerate(batch["number"])
        ]


def _pixels(image: torch.Tensor) -> np.ndarray:
    pixels = to_uint8(image[:, :1] if image.shape[1] == 2 else image[:, :3]).cpu().permute(0, 2, 3, 1).numpy()
    return np.repeat(pixels, 3, axis=3) if pixels.shape[3] == 1 else pixels

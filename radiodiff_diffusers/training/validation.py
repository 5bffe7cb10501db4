"""Validation while training: the same few scenes each time, their scores map by map, and a picture of truth,
prediction, error."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from PIL import Image

from ..evaluation.metrics import map_metrics
from .config import ValidationConfig
from .data import Sample, Samples, generators, stack_samples

logger = logging.getLogger(__name__)

# From a stacked batch of samples to planes in [-1, 1], (B, C, H, W), comparable with the samples' "image".
Predict = Callable[[dict[str, Any]], np.ndarray | torch.Tensor]
SCORES = ("nmse", "rmse", "mae", "ssim", "psnr", "rmse_db")


class Validation:
    """Call it with the step: predicts the fixed scenes, each process its share, and gives the mean scores.

    `predict` is the recipe's; `samples` must be made with `training=False`.
    """

    def __init__(self, samples: Samples, config: ValidationConfig, accelerator, folder: str | Path, predict: Predict):
        self.config, self.accelerator, self.folder, self.predict = config, accelerator, Path(folder), predict
        self.samples = fixed_samples(samples, config.scenes) if config.steps else []

    def __call__(self, step: int) -> dict[str, Any]:
        mine = self.samples[self.accelerator.process_index :: self.accelerator.num_processes]
        results = []
        for start in range(0, len(mine), self.config.batch_size):
            part = mine[start : start + self.config.batch_size]
            planes = self.predict(stack_samples(part))
            planes = planes.float().cpu().numpy() if isinstance(planes, torch.Tensor) else np.asarray(planes)
            results += [
                score(sample, plane, self.config.protocol) for sample, plane in zip(part, planes, strict=False)
            ]
        results = sorted(gather_object(results), key=lambda r: r["number"])
        scores = {name: float(np.mean([r[name] for r in results])) for name in SCORES}
        picture = None
        if self.accelerator.is_main_process and self.config.pictures:
            picture = save_picture(picture_grid(results[: self.config.pictures]), self.folder, step)
        return {**scores, "protocol": self.config.protocol, "scenes": len(results), "images": picture}


def save_picture(image: Image.Image, folder: Path, step: int) -> str | None:
    """Where it is in the run's folder; None where it could not be written, for which no run shall end."""
    name = f"validation/step_{step:06d}.png"
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    except OSError as error:
        logger.warning("%s could not be written: %s", folder / name, error)
        return None
    return name


def fixed_samples(samples: Samples, count: int) -> list[Sample]:
    """Evenly spread over the split (or its first ones, of a stream), as planes; an unreadable one stops, for it is
    not training."""
    if samples.config.streaming:
        made = []
        for index, pair in zip(range(count), samples.source, strict=False):
            made.append(samples.make(index, index, lambda pair=pair: pair))
    else:
        size = len(samples)
        indices = np.unique(np.linspace(0, size - 1, min(count, size)).round().astype(int)) if size else []
        made = [samples[(int(i), n)] for n, i in enumerate(indices)]
    if not made:
        raise ValueError("the validation split is empty: check data.validation_split, or set validation.steps 0")
    for sample in made:
        if "error" in sample:
            raise ValueError(f"validation sample {sample['name']}: {sample['error']}")
    return made


def score(sample: Sample, prediction: np.ndarray, protocol: str) -> dict[str, Any]:
    """All scores of one sample, averaged over its planes, and small pictures of the first plane."""
    truth = sample["image"]
    scale = sample["map"].scale
    per_plane = [
        map_metrics(to_gray(p), to_gray(t), protocol, scale=scale) for p, t in zip(prediction, truth, strict=False)
    ]
    means = {name: float(np.mean([m[name] for m in per_plane])) for name in SCORES}
    return {"number": sample["number"], **means, "pictures": (to_gray(truth[0]), to_gray(prediction[0]))}


def to_gray(unit: np.ndarray) -> np.ndarray:
    """[-1, 1] to gray levels 0..255."""
    return (np.clip(np.nan_to_num(unit), -1, 1).astype(np.float64) + 1) * 127.5


def picture_grid(results: list[dict[str, Any]], gap: int = 4) -> Image.Image:
    """One row a scene: truth, prediction, and how far apart they are (white: 20 % of the range and more)."""
    rows = []
    for truth, prediction in (r["pictures"] for r in results):
        error = np.clip(np.abs(truth - prediction) * 5, 0, 255)
        panels = [np.pad(p, gap, constant_values=128) for p in (truth, prediction, error)]
        rows.append(np.concatenate(panels, axis=1))
    width = max(r.shape[1] for r in rows)
    rows = [np.pad(r, ((0, 0), (0, width - r.shape[1])), constant_values=128) for r in rows]
    return Image.fromarray(np.concatenate(rows).round().astype(np.uint8))


def scene_generators(batch: dict[str, Any]) -> list[torch.Generator]:
    """Every scene is predicted from the same noise at every validation, whatever else is in the batch."""
    return generators(batch, "validation")

"""Flow matching on latents: the training step of LightningDiT, and its validation.

x_t = t x_1 + (1 - t) x_0 from noise x_0 to data x_1, so the velocity to predict is x_1 - x_0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor

from .config import ValidationConfig, option
from .data import generators, noise_like, stack_samples
from .validation import fixed_samples, save_picture


@dataclass
class FlowLossConfig:
    times: str = option("logit_normal", "how times are drawn: logit_normal (sigmoid of a normal) or uniform")
    uniform_from: int | None = option(None, "step from which on times are uniform, as the released model's last part")
    cosine_weight: float = option(1.0, "of 1 - cos between predicted and true velocity along the channels")
    label_dropout: float = option(0.1, "how often a label is replaced by the null class, for guidance")


def flow_step(
    transformer, batch: dict[str, Any], config: FlowLossConfig, step: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch with `latents` and `label`, and its parts for the log."""
    data, labels = batch["latents"], batch["label"]
    noise = noise_like(data, batch, "noise")
    uniform = config.uniform_from is not None and step >= config.uniform_from
    times = draw_times(batch, "uniform" if uniform else config.times).to(data.device)
    labels = torch.where(draw_dropped(batch, config.label_dropout).to(labels.device), transformer.null_label, labels)
    at = times.view(-1, 1, 1, 1)
    velocity = transformer(at * data + (1 - at) * noise, times, labels).sample
    mse, cosine = velocity_errors(velocity, data - noise)
    loss = mse.mean() + config.cosine_weight * cosine.mean()
    return loss, {"velocity_mse": mse.mean(), "velocity_cosine": cosine.mean()}


def velocity_errors(velocity: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """One value a sample: the mean squared error, and 1 - cos along the channels averaged over positions."""
    velocity, target = velocity.float(), target.float()
    mse = (velocity - target).square().flatten(1).mean(1)
    # A new transformer's output is zero, where the cosine's gradient is 1 / eps: with the usual 1e-8 the first step
    # would fill AdamW's second moments with 1e14. Velocities are about 8 long, so this floor changes nothing else.
    cosine = F.cosine_similarity(velocity, target, dim=1, eps=1e-2)
    return mse, (1 - cosine).flatten(1).mean(1)


def draw_times(batch: dict[str, Any], kind: str) -> Tensor:
    """A time in (0, 1) for each sample, from the sample's own generator."""
    draws = generators(batch, "time")
    if kind == "logit_normal":
        return torch.sigmoid(torch.cat([torch.randn(1, generator=g) for g in draws]))
    if kind == "uniform":
        return torch.cat([torch.rand(1, generator=g) for g in draws])
    raise ValueError(f"loss.times is {kind!r}; choose logit_normal or uniform")


def draw_dropped(batch: dict[str, Any], probability: float) -> Tensor:
    """Which samples lose their label."""
    return torch.cat([torch.rand(1, generator=g) for g in generators(batch, "label")]) < probability


class FlowValidation:
    """Call it with the step: the velocity's error on held-out latents at fixed times and noise, and a picture.

    The picture has a row for each of the first classes: what the tokenizer makes of a held-out latent, and what the
    pipeline makes of the class and fixed noise.
    """

    picture_shows = "Each row, for one class: a held-out image (rebuilt from its latent), and one generated."

    def __init__(
        self,
        samples,
        config: ValidationConfig,
        accelerator,
        folder: str | Path,
        transformer,
        pipeline: Callable[[], Any],
        cosine_weight: float = 1.0,
    ):
        self.config, self.accelerator, self.folder = config, accelerator, Path(folder)
        self.transformer, self.pipeline, self.cosine_weight = transformer, pipeline, cosine_weight
        self.items = fixed_samples(samples, config.scenes) if config.steps else []

    def __call__(self, step: int) -> dict[str, Any]:
        processes = self.accelerator.num_processes
        mine = self.items[self.accelerator.process_index :: processes]
        results = []
        for start in range(0, len(mine), self.config.batch_size):
            results += self._score(stack_samples(mine[start : start + self.config.batch_size]))
        results = sorted(gather_object(results))  # by number: the mean does not depend on who computed what
        mse, cosine = np.mean([r[1:] for r in results], axis=0).tolist()
        scores = {"velocity_mse": mse, "velocity_cosine": cosine, "loss": mse + self.cosine_weight * cosine}
        picture = None
        if self.accelerator.is_main_process and self.config.pictures:
            picture = save_picture(self._picture(), self.folder, step)
        return {**scores, "images_seen": len(results), "images": picture, "picture_shows": self.picture_shows}

    def _score(self, batch: dict[str, Any]) -> list[tuple[int, float, float]]:
        device = self.accelerator.device
        data, labels = batch["latents"].to(device), batch["label"].to(device)
        noise = noise_like(data, batch, "validation")
        # spread evenly over (0, 1), whatever the count: sample n looks at its own time each time
        times = torch.tensor([(n + 0.5) / len(self.items) for n in batch["number"]], device=device)
        at = times.view(-1, 1, 1, 1)
        with self.accelerator.autocast():
            velocity = self.transformer(at * data + (1 - at) * noise, times, labels).sample
        mse, cosine = velocity_errors(velocity, data - noise)
        return list(zip(batch["number"], mse.tolist(), cosine.tolist(), strict=True))

    def _picture(self) -> Image.Image:
        chosen = list({int(item["label"]): item for item in reversed(self.items)}.values())
        chosen = sorted(chosen, key=lambda item: int(item["label"]))[: self.config.pictures]
        pipe = self.pipeline()
        latents = torch.stack([torch.from_numpy(item["latents"]) for item in chosen]).to(self.accelerator.device)
        made = [
            pipe(
                [int(item["label"])],
                num_inference_steps=self.config.inference_steps,
                guidance_scale=getattr(self.config, "guidance_scale", 1.0),
                generator=torch.Generator().manual_seed(int(item["label"])),
                height=latents.shape[2] * pipe.vae_scale_factor,
                width=latents.shape[3] * pipe.vae_scale_factor,
                output_type="pt",
            ).images
            for item in chosen
        ]
        real = pipe.image_processor.postprocess(pipe.decode_latents(latents), output_type="pt")
        rows = torch.cat([real.float().cpu(), torch.cat(made).float().cpu()], dim=3)
        pixels = (rows.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        pixels = np.concatenate(list(pixels))
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

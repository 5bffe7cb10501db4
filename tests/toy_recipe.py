"""The smallest recipe there is, for tests of the run: a few convolutions denoise little maps. Also runs as a
script."""

import os
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from radiodiff_diffusers.scene import RadioMap, Scene
from radiodiff_diffusers.training.config import (
    DataConfig,
    EMAConfig,
    GuardConfig,
    HubConfig,
    TrainConfig,
    ValidationConfig,
    parse_config,
)
from radiodiff_diffusers.training.data import Samples, noise_like
from radiodiff_diffusers.training.run import Run, make_accelerator


@dataclass
class ToyConfig:
    data: DataConfig = field(
        default_factory=lambda: DataConfig(condition_channels=["transmitter"], symmetries=True, workers=0)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(log_steps=1, checkpoint_steps=5, max_steps=20, trackers=[])
    )
    ema: EMAConfig = field(default_factory=EMAConfig)
    guard: GuardConfig = field(default_factory=lambda: GuardConfig(bad_in_a_row=3, max_rollbacks=2))
    validation: ValidationConfig = field(default_factory=lambda: ValidationConfig(steps=0))
    hub: HubConfig = field(default_factory=HubConfig)


def toy_pairs(count=12, size=16, seed=0):
    """Maps that fall off with the distance, and with what is in the way."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        buildings = rng.random((size, size)) < 0.1
        x, y = (int(v) for v in rng.integers(size, size=2))
        buildings[y, x] = False
        rows, columns = np.mgrid[:size, :size]
        gain = -60 - 30 * np.log10(1 + np.hypot(columns - x, rows - y)) - 20 * buildings
        pairs.append((Scene(buildings, transmitter=(x, y), name=f"map_{i}"), RadioMap(gain)))
    return pairs


def toy_model(dropout=0.1):
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(dropout), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
    )


def make_run(config, pairs=None, model=None, wrap_step=None, optimizer=None, dropout=0.1):
    """A run and its training step; `wrap_step(step)` lets a test interfere."""
    accelerator = make_accelerator(config.train)
    model = model or toy_model(dropout)
    samples = Samples(pairs if pairs is not None else toy_pairs(), config.data, config.train.seed)
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=config.train.learning_rate)

    def training_step(batch):
        image = batch["image"]
        noisy = image + 0.1 * noise_like(image, batch, "noise")
        loss = (model(torch.cat([batch["condition"], noisy], 1)).float() - image).square().mean()
        return {"model": loss}, {"mse": loss}

    run = Run(
        "toy", config, accelerator,
        models={"model": model}, optimizers={"model": optimizer}, samples=samples, averaged=("model",),
    )  # fmt: skip
    return run, wrap_step(training_step) if wrap_step else training_step


def main(argv, seconds=0.0, environment=None, dropout=0.1, bad_sample=None):
    """Train as a script would and leave with the run's exit code; `seconds` slows each step, for a test to hit it."""
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    if not os.environ.get("TOY_LOUD"):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    pairs = toy_pairs()
    if bad_sample is not None:
        pairs[bad_sample] = (pairs[bad_sample][0], RadioMap(np.full((16, 16), np.nan)))
    run, step = make_run(parse_config(ToyConfig, argv), pairs=pairs, dropout=dropout)

    def slow_step(batch):
        time.sleep(seconds)
        return step(batch)

    sys.exit(run.train(slow_step))

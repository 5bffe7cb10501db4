"""The smallest recipe there is, for tests of the run: a few convolutions denoise little maps. Also runs as a
script."""

import itertools
import os
import sys
import time
from contextlib import contextmanager, nullcontext
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
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(dropout), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
    )
    model._repeated_blocks = ["Conv2d"]  # what FSDP takes as a block
    return model


def make_run(config, pairs=None, model=None, wrap_step=None, optimizer=None, dropout=0.1, scaler=None):
    """A run and its training step; `wrap_step(step)` lets a test interfere."""
    accelerator = make_accelerator(config.train)
    accelerator.scaler = scaler
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


def main(argv, seconds=0.0, environment=None, dropout=0.1, bad_sample=None, bad_losses=(), overflows=()):
    """Train as a script would and leave with the run's exit code; `seconds` slows each step, for a test to hit it.

    Of the steps, counted from 0, the first process's loss is infinite in `bad_losses`; in `overflows`, of a run with a
    gradient scaler, one single gradient is.
    """
    os.environ.update(environment or {})
    torch.set_num_threads(1)
    if not os.environ.get("TOY_LOUD"):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    pairs = toy_pairs()
    if bad_sample is not None:
        pairs[bad_sample] = (pairs[bad_sample][0], RadioMap(np.full((16, 16), np.nan)))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16) if overflows else None
    run, step = make_run(parse_config(ToyConfig, argv), pairs=pairs, dropout=dropout, scaler=scaler)
    if os.environ.get("ACCELERATE_USE_FSDP"):
        held = sum(p.numel() for p in run.parameters["model"])
        assert held < sum(p.numel() for p in run.models["model"].parameters())  # it is in parts
    calls = itertools.count()

    def slow_step(batch):
        time.sleep(seconds)
        call = next(calls)
        with overflowing(run.models["model"][-1]) if call in overflows else nullcontext():
            losses, named = step(batch)
        if call in bad_losses and run.accelerator.is_main_process:
            losses = {name: loss * float("inf") for name, loss in losses.items()}
        return losses, named

    sys.exit(run.train(slow_step))


@contextmanager
def overflowing(layer):
    """The gradient of the layer's bias is infinite in this step."""

    def spoil(layer, _inputs):
        def once(gradient):
            handle.remove()
            return gradient * float("inf")

        handle = layer.bias.register_hook(once)

    hook = layer.register_forward_pre_hook(spoil)
    yield
    hook.remove()

"""Before a run starts: what will happen, in one block, and a stop where the configuration contradicts itself."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from .config import TrainConfig


def check_train_config(train: TrainConfig, device: torch.device) -> None:
    """One line for the first contradiction found."""
    for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "checkpoint_steps", "log_steps"):
        if getattr(train, name) < 1:
            raise ValueError(f"train.{name} is {getattr(train, name)}; it must be at least 1")
    if train.mixed_precision not in ("no", "fp16", "bf16"):
        raise ValueError(f"train.mixed_precision is {train.mixed_precision!r}; choose no, bf16 or fp16")
    if train.mixed_precision == "fp16" and device.type == "cpu":
        raise ValueError("train.mixed_precision is fp16 but there is no GPU: use bf16 or no")
    if train.mixed_precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("train.mixed_precision is bf16, which this GPU does not have: use fp16 or no")
    if train.half_gradients and (train.mixed_precision != "bf16" or train.gradient_accumulation_steps > 1):
        raise ValueError(
            f"train.half_gradients goes with mixed_precision bf16 (it is {train.mixed_precision}) and without "
            f"gradient accumulation (it is {train.gradient_accumulation_steps}), whose sums need float32"
        )
    if train.half_gradients and not hasattr(torch.Tensor, "grad_dtype"):
        raise ValueError(f"train.half_gradients needs a newer PyTorch than {torch.__version__}")
    if train.lr_warmup_steps >= train.max_steps > 1:
        raise ValueError(
            f"train.lr_warmup_steps ({train.lr_warmup_steps}) is not below train.max_steps ({train.max_steps}): "
            "the learning rate would never be reached"
        )
    if len(train.adam_betas) != 2:
        raise ValueError(f"train.adam_betas must be two numbers; got {train.adam_betas}")


def check_trackers(train: TrainConfig, accelerator: Accelerator) -> None:
    """Accelerate leaves out trackers that are not installed, without a word."""
    had = {str(getattr(one, "value", one)) for one in accelerator.log_with}
    missing = [name for name in train.trackers if name != "all" and name not in had]
    if missing:
        raise ValueError(
            f"train.trackers: {missing[0]} is not installed: pip install {missing[0]}, or --trackers '' for none"
        )


def validation_interval(every: int | str, images: int | None, batch: int) -> int:
    """Optimiser steps between two validations: a number of them, or text such as `5 epochs`; 0 for none."""
    if isinstance(every, int) and every >= 0:
        return every
    found = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+) *epochs?", str(every).strip())
    if found is None or not float(found[1]):
        raise ValueError(f"validation.steps is {every!r}; expected a number of steps, or text such as 5 epochs")
    if images is None:
        raise ValueError(f"validation.steps is {every!r}, but a stream has no epochs: give a number of steps")
    return max(1, math.ceil(float(found[1]) * images / batch))


def describe_run(run: Any) -> str:
    """The block that a run prints before its first step."""
    train, accelerator = run.config.train, run.accelerator
    batch = train.batch_size * train.gradient_accumulation_steps * accelerator.num_processes
    size = run.dataset_size
    lines = [
        f"recipe        {run.recipe}, {train.max_steps:,} steps into {train.output_dir}",
        f"machine       {accelerator.num_processes} process(es) on {accelerator.device.type}, "
        f"precision asked {train.mixed_precision}, had {accelerator.mixed_precision}",
        f"batch         {train.batch_size} x {train.gradient_accumulation_steps} accumulated x "
        f"{accelerator.num_processes} process(es) = {batch}",
    ]
    if size is None:
        lines.append("data          a stream")
    else:
        lines.append(
            f"data          {size:,} samples, {math.ceil(size / batch):,} steps an epoch, "
            f"{train.max_steps * batch / size:.1f} epochs"
        )
    if run.validation_steps:
        lines.append(f"validation    every {run.validation_steps:,} steps, and after the last")
    for name, model in run.models.items():
        trained, frozen = count_parameters(model)
        averaged = ", averaged" if name in run.averages else ""
        lines.append(f"model         {name}: {trained:,} parameters trained, {frozen:,} frozen{averaged}")
    for sharded in run.sharded.values():
        lines.append(
            f"sharding      FSDP: {type(sharded.model).__name__.removeprefix('FSDP')} in {len(sharded.units)} units "
            f"over {accelerator.num_processes} processes"
        )
    lines.append(
        f"memory        {memory_estimate_gb(run):.2f} GB for weights, gradients, AdamW and averages"
        f"{' in each process' if accelerator.num_processes > 1 else ''}; activations besides"
    )
    lines.append(
        f"learning rate {train.learning_rate:g}, {train.lr_schedule}"
        + (f" to {train.lr_floor:g}" if train.lr_floor else "")
        + (f", {train.lr_warmup_steps} steps of warm-up" if train.lr_warmup_steps else "")
    )
    if run.step:
        lines.append(f"resumes       at step {run.step:,}, sample {run.samples_seen:,}")
    return "\n".join(lines)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()) - trained


def memory_estimate_gb(run: Any) -> float:
    """Weights (4 bytes), gradients (4 or 2), AdamW (8) and averages (4) of what is trained, weights of the rest."""
    total = 0
    for name, model in run.models.items():
        trained, frozen = count_parameters(model)
        each = 14 if run.config.train.half_gradients else 16
        total += each * trained + 4 * frozen + (4 * trained if name in run.averages else 0)
    return total / 1e9 / (run.accelerator.num_processes if run.sharded else 1)

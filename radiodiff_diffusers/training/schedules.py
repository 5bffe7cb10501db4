"""Learning rates as functions of the step: diffusers' schedules by name, and two that stop at a true floor."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

WITH_FLOOR = ("polynomial_floor", "cosine_floor")


def make_schedule(
    name: str,
    learning_rate: float,
    max_steps: int,
    warmup_steps: int = 0,
    floor: float = 0.0,
    power: float = 1.0,
) -> Callable[[int], float]:
    """A function from the number of finished steps to the learning rate of the next one.

    Args:
        name: `polynomial_floor`: learning_rate (1 - i/N)^power, never below `floor` (the original writes its floor
            into the factor, so that it multiplies the learning rate and never acts; this is what it means).
            `cosine_floor`: a half cosine from learning_rate to `floor`. Else a name of diffusers' `get_scheduler`.
        learning_rate: the rate at the start, or after the warm-up.
        max_steps: the length of the run, N.
        warmup_steps: steps of a linear rise from 0.
        floor: the smallest rate, for the two schedules that have one.
        power: of the polynomial.
    """
    if not 0 <= floor <= learning_rate:
        raise ValueError(f"lr_floor is {floor:g}; it must lie between 0 and learning_rate ({learning_rate:g})")
    if name in WITH_FLOOR:
        remaining = max(max_steps - warmup_steps, 1)

        def rate(step: int) -> float:
            if step < warmup_steps:
                return learning_rate * step / warmup_steps
            progress = min((step - warmup_steps) / remaining, 1.0)
            if name == "polynomial_floor":
                return max(learning_rate * (1.0 - progress) ** power, floor)
            return floor + (learning_rate - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

        return rate
    return _from_diffusers(name, learning_rate, max_steps, warmup_steps, floor, power)


def _from_diffusers(name, learning_rate, max_steps, warmup_steps, floor, power) -> Callable[[int], float]:
    from diffusers.optimization import SchedulerType, get_scheduler

    known = [s.value for s in SchedulerType if s.value != "piecewise_constant"]
    if name not in known:
        raise ValueError(f"lr_schedule is {name!r}; choose one of {', '.join([*WITH_FLOOR, *known])}")
    if floor:
        raise ValueError(f"lr_schedule {name} has no floor, but lr_floor is {floor:g}: use {' or '.join(WITH_FLOOR)}")
    # diffusers' schedules are LambdaLR objects around a function of the step: that function is all we need, and
    # having no state of its own it cannot be lost when a run is resumed
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=learning_rate)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=max_steps, power=power)
    factor = schedule.lr_lambdas[0]
    return lambda step: learning_rate * factor(step)

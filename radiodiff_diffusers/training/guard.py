"""Watches a run for values that are not finite: inputs, losses, gradients, weights.

A bad batch is named and skipped, a bad step is not taken; several in a row and the run goes back to its last good
checkpoint with a smaller learning rate; after a few such rollbacks it stops. Everything is counted, written down, and
told by the exit code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import GuardConfig
from .sharding import local

EXIT_FINISHED = 0
EXIT_FINISHED_WITH_INCIDENTS = 3  # it finished, but batches or steps had to be left out
EXIT_STOPPED_BY_GUARD = 4
EXIT_NOT_SAVED = 5  # the last checkpoint or the model could not be written, or not be uploaded


@dataclass
class Counts:
    bad_batches: int = 0
    bad_steps: int = 0
    overflows: int = 0  # fp16 steps the gradient scaler left out: its normal way to find a scale, so not an incident
    rollbacks: int = 0
    files: list[str] = field(default_factory=list)  # of bad batches, at most MAX_FILES

    MAX_FILES = 100

    @property
    def incidents(self) -> int:
        return self.bad_batches + self.bad_steps + self.rollbacks


class Guard:
    """Counts what went wrong and says when to roll back or give up. It changes nothing itself."""

    def __init__(self, config: GuardConfig):
        self.config = config
        self.counts = Counts()
        self.in_a_row = 0

    def bad_batch(self, files: list[str]) -> None:
        self.counts.bad_batches += 1
        self.counts.files += [f for f in files if f not in self.counts.files][
            : Counts.MAX_FILES - len(self.counts.files)
        ]
        self.in_a_row += 1

    def bad_step(self) -> None:
        self.counts.bad_steps += 1
        self.in_a_row += 1

    def overflow(self, scale: float) -> None:
        """A step that the fp16 gradient scaler left out; a scale below one means that it finds none that works."""
        self.counts.overflows += 1
        if scale < 1.0:
            self.bad_step()

    def good_step(self) -> None:
        self.in_a_row = 0

    @property
    def wants_rollback(self) -> bool:
        return self.in_a_row >= self.config.bad_in_a_row

    def rolled_back(self) -> bool:
        """Count a rollback; false where it was one too many and the run has to stop."""
        self.counts.rollbacks += 1
        self.in_a_row = 0
        return self.counts.rollbacks <= self.config.max_rollbacks

    @property
    def exit_code(self) -> int:
        return EXIT_FINISHED_WITH_INCIDENTS if self.counts.incidents else EXIT_FINISHED

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.counts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = Counts(**state)

    def write_report(self, path: Path, step: int, reason: str) -> None:
        """What happened, for a person: beside the run's log."""
        Path(path).write_text(json.dumps({"stopped_at_step": step, "reason": reason, **self.state_dict()}, indent=2))

    def summary(self) -> str:
        c = self.counts
        return (
            f"{c.bad_batches} bad batches skipped, {c.bad_steps} bad steps not taken, {c.rollbacks} rollbacks, "
            f"{c.overflows} fp16 overflows"
        )


def find_bad_input(batch: dict[str, Any]) -> str | None:
    """Why a batch cannot be used, or None."""
    if batch["errors"]:
        return "; ".join(batch["errors"])
    for name, value in batch.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = ~torch.isfinite(value).flatten(1).all(1)
            names = [n for n, is_bad in zip(batch["name"], bad.tolist(), strict=False) if is_bad]
            return f"{name} is not finite in {', '.join(names)}"
    return None


def bad_files(batch: dict[str, Any]) -> list[str]:
    """The samples to blame: those that could not be read or are not finite, else the whole batch."""
    names = batch["name"]
    blamed = [n for n in names if any(e.startswith(f"{n}:") for e in batch["errors"])]
    for value in batch.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            finite = torch.isfinite(value).flatten(1).all(1).tolist()
            blamed += [n for n, ok in zip(names, finite, strict=False) if not ok and n not in blamed]
    return blamed or list(names)


def bad_weights(models: dict[str, nn.Module]) -> list[str]:
    """Names of weights and buffers that are not finite; of a sharded model in this process's part."""
    return [
        f"{model_name}.{name}"
        for model_name, model in models.items()
        for name, value in [*model.named_parameters(), *model.named_buffers()]
        if value.is_floating_point() and not bool(torch.isfinite(local(value)).all())
    ]

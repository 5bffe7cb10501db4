"""What a run writes while it goes: `metrics.jsonl` (one JSON object a line), trackers, and a progress bar on
stderr."""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


class RunLog:
    """Only the main process writes; on the others every call does nothing.

    `tracked_as` gives groups of numbers (what stands before the slash) other names in the trackers.
    """

    def __init__(
        self,
        folder: Path,
        accelerator,
        max_steps: int,
        config: dict[str, Any],
        tracked_as: dict[str, str] | None = None,
    ):
        self.tracked_as = tracked_as or {}
        self.path = Path(folder) / "metrics.jsonl"
        self.accelerator = accelerator
        self.is_main = accelerator.is_main_process
        self.bar = tqdm(total=max_steps, disable=not self.is_main, file=sys.stderr, dynamic_ncols=True, unit="step")
        self._clock, self._samples = time.perf_counter(), 0
        if accelerator.log_with:
            accelerator.init_trackers("radiodiff", config=_flat(config))

    def write(self, event: str, step: int, **values: Any) -> None:
        if not self.is_main:
            return
        line = json.dumps({"event": event, "step": step, "time": round(time.time(), 3), **values}, default=str)
        try:
            with open(self.path, "a") as file:
                file.write(line + "\n")
        except OSError as error:  # a full disk must not end a run that can still train
            logger.warning("%s could not be written: %s", self.path, error)

    def train(self, step: int, samples_seen: int, values: dict[str, float]) -> None:
        """One line of the training curve; speed and memory are added here."""
        now = time.perf_counter()
        values["samples_per_second"] = round((samples_seen - self._samples) / max(now - self._clock, 1e-9), 3)
        values["memory_gb"] = round(peak_memory_gb(), 3)
        self._clock, self._samples = now, samples_seen
        self.write("train", step, **values)
        self.track({k if "/" in k else f"train/{k}": v for k, v in values.items()}, step)
        self.bar.set_postfix_str(
            f"loss {values['loss']:.4g}, lr {values['lr']:.2e}, {values['samples_per_second']:.1f} samples/s", False
        )

    def track(self, values: dict[str, Any], step: int) -> None:
        numbers = {
            self._tracked_name(k): v for k, v in values.items() if isinstance(v, (int, float)) and math.isfinite(v)
        }
        try:
            self.accelerator.log(numbers, step=step)
        except OSError as error:
            logger.warning("the tracker could not write: %s", error)

    def _tracked_name(self, name: str) -> str:
        group, slash, rest = name.partition("/")
        return self.tracked_as.get(group, group) + slash + rest

    def restart_clock(self, samples_seen: int) -> None:
        """Call after what is not training, so that it does not count as slow training."""
        self._clock, self._samples = time.perf_counter(), samples_seen

    def move_to(self, step: int) -> None:
        self.bar.n = step
        self.bar.refresh()

    def message(self, text: str) -> None:
        if self.is_main:
            self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        try:
            self.accelerator.end_training()
        except OSError as error:
            logger.warning("the tracker could not write: %s", error)


def forget_after(path: Path, step: int) -> None:
    """Before a run is resumed at `step`: what a killed run wrote after it goes to `metrics_dropped.jsonl`.

    The resumed run makes these steps again, so `metrics.jsonl` holds every step once. A last line that a kill tore is
    dropped.
    """
    if not path.exists():
        return
    kept, dropped = [], []
    for line in path.read_text().splitlines():
        try:
            later = json.loads(line)["step"] > step
        except (ValueError, KeyError, TypeError):
            later = True
        (dropped if later else kept).append(line + "\n")
    if dropped:
        with open(path.with_name("metrics_dropped.jsonl"), "a") as file:
            file.writelines(dropped)
        new = path.with_suffix(".tmp")
        new.write_text("".join(kept))
        new.replace(path)


def peak_memory_gb() -> float:
    """Of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def _flat(config: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Trackers store plain values only."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{path}{key}.")
        else:
            flat[path + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat

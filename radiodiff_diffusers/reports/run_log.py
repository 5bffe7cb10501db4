"""Reading what a training run wrote down: `metrics.jsonl`, or the text logs of the original programs.

Three formats are understood, also mixed with progress bars, colour codes and half-written lines:

- `metrics.jsonl` of this library: one JSON object a line, told apart by `event`;
- RadioDiff: `2025-08-15 20:41:13,123 [Train Step] 100/150000: train/total_loss: 0.51230, ..., lr: 0.00000,`;
- LightningDiT: `[2024-12-29 14:56:12] (step=0000100) Train Loss: 1.2133, Train Steps/Sec: 0.62`.
"""

from __future__ import annotations

import calendar
import json
import math
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .document import counted

LOG_NAME = "metrics.jsonl"
EVENTS = ("train", "validation", "guard", "resume", "start", "checkpoint", "end")
NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf)"
RADIODIFF_LINE = re.compile(r"\[Train Step\]\s+(\d+)/(\d+):(.*)")
PAIR = re.compile(rf"([A-Za-z][\w/ .-]*?):\s*({NUMBER})(?=\s*(?:,|$|\|))")
LIGHTNINGDIT_LINE = re.compile(r"\(step=(\d+)\)\s*(.*)")
TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)")
COLOUR_CODES = re.compile(r"\x1b\[[0-9;]*m|\[\d*m(?=\])|\[(?=\[34m)|\[34m")


@dataclass
class RunLog:
    """One run: its training records by step (the latest where a resumed run went over a step again) and its events."""

    name: str
    path: Path
    train: dict[int, dict[str, float]] = field(default_factory=dict)
    validations: list[dict[str, Any]] = field(default_factory=list)
    guards: list[dict[str, Any]] = field(default_factory=list)
    resumes: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    total_steps: int | None = None
    disc_start: int | None = None
    recipe: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    status: str | None = None
    damaged: list[str] = field(default_factory=list)
    repeated: int = 0

    @property
    def steps(self) -> np.ndarray:
        return np.array(sorted(self.train), dtype=np.int64)

    @property
    def last_step(self) -> int:
        return max(
            [*self.train, *(int(v["step"]) for v in self.validations), *(int(c["step"]) for c in self.checkpoints)],
            default=0,
        )

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(steps, values) of one training number, where it was written."""
        steps = [step for step in sorted(self.train) if name in self.train[step]]
        return np.array(steps, np.int64), np.array([self.train[step][name] for step in steps], np.float64)

    def validation_column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        rows = [row for row in self.validations if isinstance(row.get(name), (int, float))]
        return np.array([row["step"] for row in rows], np.int64), np.array([row[name] for row in rows], np.float64)

    def names(self) -> list[str]:
        """Every training number ever written, in order of appearance."""
        return list(dict.fromkeys(name for record in self.train.values() for name in record))

    def loss_parts(self) -> list[str]:
        """The components of the loss, without the learning rate, throughput and the like."""
        return [name for name in self.names() if name.startswith("loss/")]

    @property
    def gan_start(self) -> int | None:
        """The first step with the discriminator: as the run said, or where its factor left zero."""
        if self.disc_start is not None:
            return self.disc_start
        steps, factor = self.column("loss/disc_factor")
        return int(steps[factor > 0][0]) if (factor > 0).any() and (factor == 0).any() else None

    def record_train(self, step: int, values: dict[str, float]) -> None:
        self.train.setdefault(step, {}).update(values)


# Finding and reading -----------------------------------------------------------------------------------------------


def find_logs(path: str | Path) -> list[Path]:
    """The log files of a run folder, oldest first; or the file itself."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder; give a run's folder, its {LOG_NAME}, or a text log")
    if (path / LOG_NAME).is_file():
        return [path / LOG_NAME]
    texts = sorted([*path.glob("*.log"), *path.glob("log*.txt")])
    if not texts:
        raise ValueError(f"{path} holds neither {LOG_NAME} nor a .log file: is it the folder of a run?")
    return texts


def read_run(path: str | Path) -> RunLog:
    """Read a run's log, in any of the three formats; damaged lines are skipped and counted in `damaged`."""
    files = find_logs(path)
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    run = RunLog(name=folder.resolve().name if path.is_dir() or path.name == LOG_NAME else path.stem, path=folder)
    for file in files:
        text = file.read_bytes().decode("utf-8", errors="replace")
        reader = _read_json_line if file.suffix == ".jsonl" else _read_text_line
        previous = _Previous()
        for number, line in enumerate(re.split(r"[\r\n]+", text), start=1):
            if not line.strip():
                continue
            problem = reader(run, line, previous)
            if problem:
                run.damaged.append(f"{file.name}, line {number}: {problem}")
    _add_rates(run)
    if not run.train and not run.validations:
        found = counted(len(run.damaged), "damaged line") if run.damaged else "no training step"
        raise ValueError(f"{files[0]}: {found}, nothing to report on; is it the log of a run?")
    return run


@dataclass
class _Previous:
    """Where the reader is: the last step seen and whether a resume was just announced."""

    step: int = -1
    announced: bool = False


def _read_json_line(run: RunLog, line: str, previous: _Previous) -> str | None:
    try:
        record = json.loads(line)
    except ValueError:
        return "not whole JSON (half-written?)"
    if not isinstance(record, dict) or record.get("event") not in EVENTS:
        return "no known event"
    event, step = record["event"], record.get("step")
    if event == "end":
        run.status = str(record.get("status", "ended"))
        return None
    if not isinstance(step, (int, float)) or isinstance(step, bool) or not math.isfinite(step):
        return f"{event} without a step"
    record["step"] = int(step)
    if event == "start":
        run.recipe = str(record.get("recipe") or run.recipe)
        if isinstance(record.get("config"), dict):
            run.config = record["config"]
        run.disc_start = _whole_or_none(record.get("disc_start"), run.disc_start)
        run.total_steps = _total_steps(run.config) or _total_steps(record) or run.total_steps
    elif event == "resume":
        _note_resume(run, record["step"], record)
        previous.announced = True
        previous.step = record["step"]
        run.status = None
    elif event == "train":
        # A recipe may log a component under the original's name for it.
        record = {ORIGINAL_NAMES.get(k.removeprefix("loss/"), k) if "/" in k else k: v for k, v in record.items()}
        values = {k: float(v) for k, v in record.items() if _is_number(v) and k not in {"event", "step"}}
        values.update({k: math.nan for k, v in record.items() if v in ("NaN", "nan") or (v is None and "loss" in k)})
        _follow(run, record["step"], values, previous)
    else:
        {"validation": run.validations, "guard": run.guards, "checkpoint": run.checkpoints}[event].append(record)
    return None


def _read_text_line(run: RunLog, line: str, previous: _Previous) -> str | None:
    line = COLOUR_CODES.sub("", line)
    if found := RADIODIFF_LINE.search(line):
        step, run.total_steps = int(found[1]), int(found[2])
        pairs = PAIR.findall(found[3])
        values = {_column_name(name): float(value) for name, value in pairs}
    elif found := LIGHTNINGDIT_LINE.search(line):
        step = int(found[1])
        pairs = PAIR.findall(found[2])
        values = {_column_name(name): float(value) for name, value in pairs}
    else:
        # Everything else a program printed is not ours to judge, but a cut training line is damage.
        return "a training line cut short" if "[Train Step]" in line or "(step=" in line else None
    if not values:
        return "a training line without numbers"
    stamp = TIME.search(line)
    if stamp:
        values["time"] = float(calendar.timegm(time.strptime(stamp[1], "%Y-%m-%d %H:%M:%S")))
    _follow(run, step, values, previous)
    return None


# The originals' names for what this library logs.
ORIGINAL_NAMES = {
    "total_loss": "loss",
    "Train Loss": "loss",
    "lr": "lr",
    "Train Steps/Sec": "steps_per_second",
    "rec_loss": "loss/reconstruction",
    "nll_loss": "loss/nll",
    "kl_loss": "loss/kl",
    "g_loss": "loss/adversarial",
    "d_weight": "loss/adversarial_weight",
    "disc_loss": "loss/discriminator",
    "logits_real": "loss/real",
    "logits_fake": "loss/fake",
}


def _column_name(name: str) -> str:
    """The originals' names in this library's words."""
    name = name.strip().removeprefix("train/")
    return ORIGINAL_NAMES.get(name, f"loss/{name}")


def _follow(run: RunLog, step: int, values: dict[str, float], previous: _Previous) -> None:
    """Record a step; one that goes back means the run was taken up again from an earlier point."""
    if step < previous.step and not previous.announced:
        _note_resume(run, step, {"step": step, "from": None, "found": True})
    if step < previous.step or (previous.announced and step in run.train):
        for old in [s for s in run.train if s >= step]:
            del run.train[old]
            run.repeated += 1
    previous.step, previous.announced = step, False
    run.record_train(step, values)


def _note_resume(run: RunLog, step: int, record: dict[str, Any]) -> None:
    """Keep the loss just before, since the steps that were gone over again will be replaced."""
    steps, losses = run.column("loss")
    before = losses[steps <= step][-10:]
    lost = int(steps.max() - step) if steps.size and steps.max() > step else 0
    run.resumes.append(
        {**record, "loss_before": float(np.nanmean(before)) if before.size else None, "steps_lost": lost}
    )


def resume_table(run: RunLog) -> list[dict[str, Any]]:
    """Each resume with the mean loss of up to ten records before and after it, and the difference in percent."""
    rows = []
    steps, losses = run.column("loss")
    for resume in run.resumes:
        after = losses[steps >= resume["step"]][:10]
        before, after = resume["loss_before"], float(np.nanmean(after)) if np.isfinite(after).any() else None
        change = (after - before) / abs(before) if before and after is not None else None
        rows.append({**resume, "loss_after": after, "change": change})
    return rows


def _add_rates(run: RunLog) -> None:
    """Steps per second from the time stamps, where the run wrote no throughput itself."""
    if any("samples_per_second" in record or "steps_per_second" in record for record in run.train.values()):
        return
    steps, times = run.column("time")
    for i in range(1, len(steps)):
        seconds = times[i] - times[i - 1]
        if seconds > 0:
            run.train[int(steps[i])]["steps_per_second"] = float((steps[i] - steps[i - 1]) / seconds)


def _total_steps(config: dict[str, Any]) -> int | None:
    """The planned number of steps, wherever the config has it."""
    for key in ("max_train_steps", "train_num_steps", "num_train_steps", "max_steps", "total_steps", "steps"):
        if _is_number(config.get(key)) and config[key] > 0:
            return int(config[key])
    for value in config.values():
        if isinstance(value, dict) and (steps := _total_steps(value)):
            return steps
    return None


def _whole_or_none(value: Any, otherwise: int | None) -> int | None:
    return int(value) if _is_number(value) and math.isfinite(value) else otherwise


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

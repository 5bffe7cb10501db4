"""What a training log says to someone in a hurry: how far, best values, trend, what looks wrong and what to try.

Every finding is a rule on measured numbers, with the numbers in its text. The rules look at smoothed curves, so one
bad batch is not a diagnosis.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from .document import counted, format_cell
from .run_log import RunLog, resume_table

LOWER_IS_BETTER = ("nmse", "rmse", "mae", "rmse_db", "mae_db", "lpips", "loss")
HIGHER_IS_BETTER = ("ssim", "psnr")


@dataclass
class Finding:
    """`kind` is bad, warn, good or info; `text` says what was seen; `advice` what to try."""

    kind: str
    text: str
    advice: str = ""


def comparable_losses(run: RunLog) -> tuple[np.ndarray, np.ndarray]:
    """The loss where it is made of the same parts: since the GAN began, once there is enough of that to look at."""
    steps, losses = run.column("loss")
    start = run.gan_start
    if start is not None and (steps >= start).sum() >= 12:
        return steps[steps >= start], losses[steps >= start]
    return steps, losses


def duration(seconds: float) -> str:
    """90 -> 1.5 minutes."""
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}{'' if f'{seconds / size:.3g}' == '1' else 's'}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def smooth(values: np.ndarray, share: float = 0.02) -> np.ndarray:
    """Running mean over `share` of the record (at least 5 values), ends included; NaN is left out."""
    if not len(values):
        return np.asarray(values, float)
    width = min(max(5, int(len(values) * share)), len(values)) | 1
    known = np.isfinite(values)
    kernel = np.ones(width)
    # mode "same" with padding by hand: numpy returns the longer of the two where the kernel is longer than the data
    sums, counts = (
        np.convolve(np.pad(v, width // 2), kernel, "valid")
        for v in (np.where(known, values, 0.0), known.astype(float))
    )
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def best_values(run: RunLog) -> list[dict[str, float | int | str]]:
    """For the loss and every validation metric: its best value and when, and its latest."""
    rows = []
    steps, losses = comparable_losses(run)
    if np.isfinite(losses).any():
        curve = smooth(losses)
        at = int(np.nanargmin(curve))
        rows.append(_best_row("loss (smoothed)", curve, steps, at))
    for name in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER):
        steps, values = run.validation_column(name)
        if np.isfinite(values).any():
            at = int(np.nanargmax(values) if name in HIGHER_IS_BETTER else np.nanargmin(values))
            rows.append(_best_row(f"validation {name}", values, steps, at))
    return rows


def _best_row(name: str, values: np.ndarray, steps: np.ndarray, at: int) -> dict[str, float | int | str]:
    return {
        "what": name,
        "best": float(values[at]),
        "best_step": int(steps[at]),
        "last": float(values[-1]),
        "last_step": int(steps[-1]),
    }


def progress(run: RunLog, now: float | None = None) -> dict[str, float | int | str | None]:
    """How far the run is, how long it has run, and when it will be done at its latest pace."""
    steps, times = run.column("time")
    result: dict[str, float | int | str | None] = {
        "step": run.last_step,
        "total": run.total_steps,
        "status": run.status,
    }
    result["share"] = run.last_step / run.total_steps if run.total_steps else None
    if len(times) > 1:
        gaps, strides = np.diff(times), np.diff(steps)
        moving = (gaps > 0) & (strides > 0)
        # A gap of fifty times the usual is a pause between two sittings, not training.
        working = moving & (gaps < 50 * max(float(np.median(gaps)), 1.0))
        result["hours"] = float(gaps[working].sum() / 3600)
        recent = moving[-50:]
        if recent.any():
            pace = float(np.median(gaps[-50:][recent] / strides[-50:][recent]))
            result["seconds_per_step"] = pace
            if run.total_steps and run.status is None:
                result["hours_left"] = max(run.total_steps - run.last_step, 0) * pace / 3600
            result["silent_seconds"] = (now if now is not None else time.time()) - float(times[-1])
            result["usual_seconds"] = float(np.median(gaps[moving]))
    return result


def trend(run: RunLog) -> tuple[float, int] | None:
    """Relative change of the smoothed loss over the last quarter of its records, and the steps that quarter spans."""
    steps, losses = comparable_losses(run)
    if len(steps) < 12:
        return None
    quarter = max(len(steps) // 4, 6)
    tail, at = smooth(losses, 0.05)[-quarter:], steps[-quarter:]
    known = np.isfinite(tail)
    if known.sum() < 4 or not np.ptp(at[known]):
        return None
    slope, offset = np.polyfit(at[known].astype(float), tail[known], 1)
    start, end = slope * at[0] + offset, slope * at[-1] + offset
    return (float((end - start) / abs(start)) if start else 0.0), int(at[-1] - at[0])


# What looks wrong --------------------------------------------------------------------------------------------------


def diagnose(run: RunLog, now: float | None = None) -> list[Finding]:
    """All findings, the worst first; never empty."""
    rules = (not_finite, diverging, stalled, gan, learning_rate, validation_turned, resumes, guards, pace, reading)
    findings = [finding for rule in rules for finding in rule(run)] + silence(run, now)
    if not any(f.kind in {"bad", "warn"} for f in findings):
        findings.append(Finding("good", "Nothing looks wrong in the numbers that were logged."))
    order = {"bad": 0, "warn": 1, "good": 2, "info": 3}
    return sorted(findings, key=lambda f: order[f.kind])


def not_finite(run: RunLog) -> list[Finding]:
    found = {}
    for name in ["loss", *run.loss_parts()]:
        steps, values = run.column(name)
        bad = ~np.isfinite(values)
        if bad.any():
            found[name] = (int(bad.sum()), int(steps[bad][0]))
    if not found:
        return []
    first = min(found, key=lambda name: found[name][1])
    names = ", ".join(f"`{name}` ({counted(count, 'time')})" for name, (count, _) in found.items())
    return [
        Finding(
            "bad",
            f"NaN or infinite values in {names}; the first at step {found[first][1]:,} in `{first}`.",
            "Resume from the last checkpoint before that step with a lower learning rate; train in bf16 or fp32, not "
            "fp16; clip gradients at 1.0 or below; check the batch of that step for broken images.",
        )
    ]


def diverging(run: RunLog) -> list[Finding]:
    steps, losses = comparable_losses(run)
    jumps = [row["step"] for row in resume_table(run) if _jumped(run, row)]
    if jumps and (steps >= jumps[-1]).sum() >= 20:  # a jump at a resume is a finding of its own
        steps, losses = steps[steps >= jumps[-1]], losses[steps >= jumps[-1]]
    if len(steps) < 20:
        return []
    curve = smooth(losses, 0.05)
    if not np.isfinite(curve).any():
        return []
    at = int(np.nanargmin(curve))
    low, last = curve[at], curve[-1]
    spread = float(np.nanstd(losses - curve))
    if np.isfinite(last) and last - low > max(0.3 * abs(low), 3 * spread) and at < 0.95 * len(curve):
        return [
            Finding(
                "bad",
                f"Diverging: the loss was {format_cell(float(low))} at step {int(steps[at]):,} and is "
                f"{format_cell(float(last))} now.",
                f"Go back to the checkpoint at or before step {int(steps[at]):,} and continue with a tenth of "
                "the learning "
                "rate; raise warm-up; clip gradients.",
            )
        ]
    return []


def stalled(run: RunLog) -> list[Finding]:
    change = trend(run)
    if change is None or run.status in {"finished", "completed", "done"}:
        return []
    relative, span = change
    far = run.total_steps and run.last_step > 0.9 * run.total_steps
    if abs(relative) < 0.005 and not far and _validation_still(run):
        return [
            Finding(
                "warn",
                f"Stalled: the loss changed by {relative:+.2%} over the last {span:,} steps, and no validation "
                "metric improved.",
                "If the maps look good, stop here. Otherwise check that the learning rate is not too small, that "
                "the data "
                "reach the model (look at the validation pictures), and that the latent scale fits the autoencoder.",
            )
        ]
    return []


def _validation_still(run: RunLog) -> bool:
    """Whether the last third of the validations brought no new best of any metric."""
    for row in best_values(run)[1:]:
        name = str(row["what"]).removeprefix("validation ")
        steps, _ = run.validation_column(name)
        if len(steps) < 3 or row["best_step"] >= steps[-max(len(steps) // 3, 1)]:
            return False
    return True


def gan(run: RunLog) -> list[Finding]:
    """The adversarial part: off, won by one side, or at the ceiling of its weight."""
    start = run.gan_start
    if start is None:
        return []
    if run.last_step < start:
        return [
            Finding(
                "info", f"The discriminator starts at step {start:,}; until then the loss has no adversarial part."
            )
        ]
    findings = []
    tail = {}
    for name in ("discriminator", "real", "fake", "adversarial_weight"):
        steps, values = run.column(f"loss/{name}")
        recent = values[steps >= start][-max(len(values) // 10, 10) :]
        if np.isfinite(recent).sum() >= 5:
            tail[name] = float(np.nanmean(recent))
    margin = tail["real"] - tail["fake"] if {"real", "fake"} <= tail.keys() else None
    if "discriminator" in tail and tail["discriminator"] < 0.02:
        findings.append(
            Finding(
                "bad",
                f"GAN collapsed: the discriminator always wins (its loss is {tail['discriminator']:.3g}), so the "
                "decoder learns nothing from it.",
                "Lower the discriminator's learning rate or its weight, or start it later.",
            )
        )
    elif margin is not None and abs(margin) < 0.01:
        findings.append(
            Finding(
                "bad",
                "GAN collapsed: the discriminator cannot tell real from reconstructed (logits differ by "
                f"{margin:+.3g}).",
                "Raise the discriminator's learning rate, check that its optimiser steps at all, and that disc_start "
                "counts the steps you mean.",
            )
        )
    if tail.get("adversarial_weight", 0) >= 4000:
        findings.append(
            Finding(
                "warn",
                f"The adaptive weight of the GAN is {tail['adversarial_weight']:.3g}, near its ceiling: the "
                "reconstruction's gradient "
                "at the last layer has all but vanished beside the discriminator's.",
                "Lower disc_weight, or check that the reconstruction loss still moves.",
            )
        )
    return findings


def learning_rate(run: RunLog) -> list[Finding]:
    steps, rates = run.column("lr")
    # The originals' text logs print five decimals: a rate of 4e-6 reads 0.00000 there.
    if len(rates) < 3 or not np.isfinite(rates).any():
        return []
    if not rates.any():
        rounded = not run.config
        return [
            Finding(
                "info" if rounded else "bad",
                "The learning rate reads zero at every step"
                + ("; the original's text log rounds to five decimals, so this may be rounding." if rounded else "."),
                "Check the config's learning rate.",
            )
        ]
    left = run.total_steps is not None and run.last_step < 0.95 * run.total_steps
    if rates[-1] <= 1e-4 * np.nanmax(rates) and left and run.status is None:
        first = steps[rates <= 1e-4 * np.nanmax(rates)]
        first = first[first > steps[np.nanargmax(rates)]]
        return [
            Finding(
                "bad",
                f"The learning rate has been practically zero ({rates[-1]:.2g}) since step {int(first[0]):,}, with "
                f"{run.total_steps - run.last_step:,} steps to go: nothing is learned any more.",
                "Give the schedule a floor, or its length the run's number of steps.",
            )
        ]
    return []


def validation_turned(run: RunLog) -> list[Finding]:
    findings = []
    for row in best_values(run):
        name = str(row["what"]).removeprefix("validation ")
        if not str(row["what"]).startswith("validation") or name not in {"nmse", "rmse", "loss"}:
            continue
        steps, values = run.validation_column(name)
        recent = float(np.nanmedian(values[-3:]))
        if len(values) >= 6 and recent > 1.15 * row["best"] and row["best_step"] < steps[-3]:
            findings.append(
                Finding(
                    "warn",
                    f"Validation {name} was best at step {row['best_step']:,} ({row['best']:.4g}) and is "
                    f"{recent:.4g} now "
                    f"({recent / row['best'] - 1:+.0%}).",
                    f"Use the checkpoint nearest step {row['best_step']:,}; if the training loss still falls this is "
                    "over-fitting: more data or augmentation, or stop earlier.",
                )
            )
            break
    return findings


def _jumped(run: RunLog, row: dict) -> bool:
    """Whether the loss rose at a resume by a fifth and by more than it wavers anyway."""
    if row["change"] is None:
        return False
    _, losses = run.column("loss")
    noise = float(np.nanstd(losses - smooth(losses))) if len(losses) > 10 else 0.0
    jump = row["loss_after"] - row["loss_before"]
    return jump > 0.2 * abs(row["loss_before"]) and jump > 2 * noise


def resumes(run: RunLog) -> list[Finding]:
    findings = []
    for row in resume_table(run):
        if _jumped(run, row):
            findings.append(
                Finding(
                    "warn",
                    f"The loss jumped by {row['change']:+.0%} when the run was resumed at step {row['step']:,} "
                    f"({format_cell(row['loss_before'])} to {format_cell(row['loss_after'])}).",
                    "Check that the optimiser, the EMA and the schedule came back with the weights, and that the "
                    "latent "
                    "scale and loss weighting of the config are those of the first part.",
                )
            )
    return findings


def guards(run: RunLog) -> list[Finding]:
    counts: dict[str, int] = {}
    for event in run.guards:
        kind = str(event.get("kind", "unknown"))
        counts[kind] = counts.get(kind, 0) + 1
    if not counts:
        return []
    listed = ", ".join(f"{count} x {kind.replace('_', ' ')}" for kind, count in counts.items())
    if "stop" in counts:
        last = [event for event in run.guards if event.get("kind") == "stop"][-1]
        return [
            Finding(
                "bad",
                f"The guard stopped the run at step {int(last['step']):,}: {last.get('detail') or 'no detail'} "
                f"({listed}).",
                "See the guard table below for the files involved; lower the learning rate before resuming.",
            )
        ]
    many = len(run.guards) > 0.01 * max(run.last_step, 1) or "rollback" in counts
    return [
        Finding(
            "warn" if many else "info",
            f"The guard stepped in: {listed}.",
            "The guard table below lists the steps and files." if many else "",
        )
    ]


def pace(run: RunLog) -> list[Finding]:
    findings = []
    for name, unit in (("samples_per_second", "samples/s"), ("steps_per_second", "steps/s")):
        _, values = run.column(name)
        if len(values) >= 20 and np.isfinite(values).all():
            usual, recent = float(np.median(values)), float(np.median(values[-5:]))
            if recent < 0.5 * usual:
                findings.append(
                    Finding(
                        "warn",
                        f"Training has slowed to {recent:.3g} {unit}, from {usual:.3g} usually.",
                        "Look for another program on the machine, a full disk, or a data loader that waits.",
                    )
                )
    _, memory = run.column("memory_gb")
    if len(memory) >= 20 and memory[-1] > 1.3 * np.median(memory[: len(memory) // 2]) and memory[-1] - memory[0] > 0.5:
        findings.append(
            Finding(
                "warn",
                f"Memory grew from {np.median(memory[: len(memory) // 2]):.2f} to {memory[-1]:.2f} GB.",
                "Something keeps tensors: look for losses stored with their graph, or growing caches.",
            )
        )
    return findings


def silence(run: RunLog, now: float | None = None) -> list[Finding]:
    far = progress(run, now)
    if run.status is not None:
        if run.status in {"finished", "completed", "done", "ok", "ended"}:
            return [Finding("info", f"The run ended: {run.status}.")]
        if run.status == "stopped":
            text = f"The run was stopped at step {run.last_step:,}, before its end."
            return [Finding("warn", text, "Go on with `--resume latest`.")]
        return [Finding("bad", f"The run ended with status `{run.status}`.", "See the last lines of its output.")]
    quiet, usual = far.get("silent_seconds"), far.get("usual_seconds")
    if quiet is not None and usual is not None and quiet > max(20 * float(usual), 600):
        done = run.total_steps and run.last_step >= 0.99 * run.total_steps
        if not done:
            return [
                Finding(
                    "warn",
                    f"No news for {duration(float(quiet))} and no end was written: the run has stopped or was killed.",
                    "Resume it from its last checkpoint.",
                )
            ]
    return []


def reading(run: RunLog) -> list[Finding]:
    findings = []
    if run.damaged:
        findings.append(
            Finding(
                "info",
                f"{counted(len(run.damaged), 'damaged or half-written line')} of the log skipped; the first: "
                f"{run.damaged[0]}.",
            )
        )
    if run.repeated:
        findings.append(
            Finding("info", f"{counted(run.repeated, 'record')} written again after a resume: the later ones count.")
        )
    if math.isclose(len(run.train), 0):
        findings.append(Finding("warn", "The log holds no training records, only events.", ""))
    return findings

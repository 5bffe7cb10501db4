"""The figures of a training report, each a function from a `RunLog` (or several) to one PNG."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import style
from .diagnosis import HIGHER_IS_BETTER, smooth
from .run_log import RunLog

UNITS = {
    "loss": "loss",
    "lr": "learning rate",
    "samples_per_second": "samples per second",
    "steps_per_second": "steps per second",
    "memory_gb": "memory [GB]",
    "nmse": "NMSE",
    "rmse": "RMSE (gray / 255)",
    "mae": "MAE (gray / 255)",
    "rmse_db": "RMSE [dB]",
    "mae_db": "MAE [dB]",
    "ssim": "SSIM",
    "psnr": "PSNR [dB]",
    "lpips": "LPIPS",
}
PARTS = {
    "loss/reconstruction": "reconstruction, a pixel",
    "loss/nll": "reconstruction, summed over pixels",
    "loss/kl": "KL divergence",
    "loss/adversarial": "adversarial (generator)",
    "loss/adversarial_weight": "adaptive weight of the GAN",
    "loss/discriminator": "discriminator",
    "loss/disc_factor": "GAN on (1) or off (0)",
    "loss/real": "logits of real maps",
    "loss/fake": "logits of reconstructions",
    "loss/logvar": "log variance",
    "loss/loss_simple": "noise and drift",
    "loss/loss_vlb": "variational bound",
    "loss/diffusion": "drift and noise",
    "loss/perceptual": "perceptual (LPIPS)",
    "loss/vf_loss": "alignment with the foundation model",
    "loss/vf_weight": "adaptive weight of the alignment",
    "loss/vf_cosine": "alignment, marginal cosine",
    "loss/vf_distance": "alignment, marginal distances",
    "loss/velocity_mse": "velocity, squared error",
    "loss/velocity_cosine": "velocity, direction",
}
NO_LOSSES = ("loss/adversarial_weight", "loss/vf_weight", "loss/disc_factor", "loss/real", "loss/fake", "loss/logvar")

# Noise around a level, and a switch whose one step is marked anyway: nothing to hold beside other curves.
NOT_COMPARED = ("loss/disc_factor", "loss/real", "loss/fake", "loss/logvar")


def spoken(quantity: str) -> str:
    """`validation rmse_db` as one says it: validation RMSE [dB]."""
    kind, _, name = quantity.partition(" ")
    return f"{kind} {UNITS[name]}" if name in UNITS else quantity


def name_of(column: str) -> str:
    return PARTS.get(column) or UNITS.get(column) or column.removeprefix("loss/").replace("_", " ")


def curve(axes: Any, steps: np.ndarray, values: np.ndarray, colour: str, text: str | None = None) -> None:
    """The raw record pale, its running mean strong; a short record as points."""
    if len(values) < 40:
        axes.plot(steps, values, marker="o", markersize=3.5, color=colour, label=text)
        return
    axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.7)
    axes.plot(steps, smooth(values), color=colour, label=text)


def mark_events(axes: Any, run: RunLog, labels: bool = False) -> None:
    """Vertical marks: GAN start dashed, resumes dotted, the guard's interventions as ticks at the foot."""
    if run.gan_start is not None and run.gan_start <= max(run.last_step, 1):
        text = f"GAN starts, step {run.gan_start:,}" if labels else None
        axes.axvline(run.gan_start, color=style.PINK, linestyle="--", linewidth=1.4, label=text)
    for i, resume in enumerate(run.resumes):
        text = "resumed" if labels and i == 0 else None
        axes.axvline(resume["step"], color=style.GRAY, linestyle=":", linewidth=1.4, label=text)
    if run.guards:
        at = [event["step"] for event in run.guards]
        axes.plot(
            at, np.full(len(at), 0.02), "|", color=style.BLACK, markersize=10, transform=axes.get_xaxis_transform(),
            label="guard" if labels else None,
        )  # fmt: skip


# The five figures --------------------------------------------------------------------------------------------------


def phases(run: RunLog, path: Path) -> Path:
    """The total loss over the whole run, its phases shaded, the GAN's start, resumes and guard events marked."""
    steps, losses = run.column("loss")
    with style.drawing(size=(9.5, 4.4), title=f"{run.name}: loss over the run") as (figure, grid):
        axes = grid[0, 0]
        curve(axes, steps, losses, style.BLUE, "total loss")
        style.pick_scale(axes, losses)
        start, last = run.gan_start, max(run.last_step, 1)
        if start is not None and start < last:
            for left, right, colour, text in (
                (min(steps.min(initial=0), start), start, style.SKY, "autoencoder alone"),
                (start, last, style.PINK, "with GAN"),
            ):
                axes.axvspan(left, right, color=colour, alpha=0.08, linewidth=0)
                middle = (left + right) / 2
                axes.text(
                    middle, 0.97, text, transform=axes.get_xaxis_transform(), ha="center", va="top", color="#444"
                )
        mark_events(axes, run, labels=True)
        style.step_axis(axes)
        axes.set_ylabel("total loss")
        if run.total_steps:
            axes.set_title(f"{run.last_step:,} of {run.total_steps:,} steps ({run.last_step / run.total_steps:.0%})")
        axes.legend(loc="best")
        return style.save(figure, path)


def components(run: RunLog, path: Path) -> Path:
    """Every component of the loss in a panel of its own, on the scale that suits it."""
    parts = ["loss", *run.loss_parts()]
    columns = min(3, len(parts))
    rows = math.ceil(len(parts) / columns)
    size = (4.3 * max(columns, 2), 2.6 * rows + 0.5)
    with style.drawing(rows, columns, size, f"{run.name}: components of the loss") as (figure, grid):
        for axes, part in zip(grid.flat, parts, strict=False):
            steps, values = run.column(part)
            curve(axes, steps, values, style.BLUE)
            style.pick_scale(axes, values)
            mark_events(axes, run)
            style.label(axes, "total" if part == "loss" else name_of(part), y=axis_unit(part))
            style.step_axis(axes)
        for axes in grid.flat[len(parts) :]:
            axes.set_axis_off()
        return style.save(figure, path)


def axis_unit(part: str) -> str:
    if part in ("loss/real", "loss/fake"):
        return "logit"
    return "weight" if part.endswith(("_weight", "disc_factor")) else "loss"


def multi_axis(run: RunLog, path: Path) -> Path:
    """Up to four quantities of different size on one picture, an axis each in its own colour."""
    first = ("loss", "loss/reconstruction", "loss/nll", "loss/kl", "loss/adversarial", "loss/discriminator")
    wanted = [*first, *run.loss_parts()]
    # What never moves, or has the shape of another curve, tells nothing here.
    shown: list[str] = []
    for part in dict.fromkeys(wanted):
        values = smooth(run.column(part)[1])
        moves = np.isfinite(values).any() and np.nanstd(values) > 0
        if moves and len(shown) < 3 and not any(_same_shape(values, smooth(run.column(other)[1])) for other in shown):
            shown.append(part)
    if np.isfinite(run.column("lr")[1]).any():
        shown.append("lr")
    colours = {part: style.BLACK if part == "lr" else style.COLOURS[i] for i, part in enumerate(shown)}
    with style.drawing(size=(9.5, 4.6), title=f"{run.name}: several quantities, an axis each") as (figure, grid):
        base = grid[0, 0]
        for i, (part, colour) in enumerate(colours.items()):
            axes = base if i == 0 else base.twinx()
            axes.grid(i == 0)
            side = "left" if i == 0 else "right"
            axes.spines[side].set_visible(True)
            axes.spines[side].set_color(colour)
            if i > 1:
                axes.spines["right"].set_position(("axes", 1 + 0.145 * (i - 1)))
            steps, values = run.column(part)
            if part == "lr":
                axes.plot(steps, values, color=colour, linestyle="--")
                axes.set_ylim(0, max(float(np.nanmax(values)), 1e-12) * 1.05)
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}".replace("e-0", "e-"))
            else:
                axes.plot(steps, smooth(values), color=colour)
                axes.yaxis.set_major_formatter(style.short_number)
                style.pick_scale(axes, values)
            axes.set_ylabel("total loss" if part == "loss" else name_of(part), color=colour)
            axes.tick_params(axis="y", colors=colour)
        mark_events(base, run)
        style.step_axis(base)
        # The layout engine does not see how far out a moved axis reaches.
        figure.get_layout_engine().set(rect=(0, 0, 1 - 0.015 * max(len(shown) - 2, 0), 1))
        return style.save(figure, path)


def _same_shape(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether one curve is the other, scaled and shifted."""
    known = np.isfinite(a) & np.isfinite(b) if len(a) == len(b) else np.zeros(0, bool)
    if known.sum() < 3 or np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return False
    return bool(np.corrcoef(a[known], b[known])[0, 1] > 0.99)


def normalised(run: RunLog, path: Path) -> Path:
    """All components brought to 0..1 between their own smallest and largest value: what moves when."""
    with style.drawing(size=(9.5, 4.6), title=f"{run.name}: components side by side, each on its own 0..1") as (
        figure,
        grid,
    ):
        axes = grid[0, 0]
        dashes = ("-", "--", ":", "-.")
        drawn = 0
        for part in ["loss", *run.loss_parts()]:
            steps, values = run.column(part)
            values = smooth(values)
            if part in NOT_COMPARED or not np.isfinite(values).any() or np.nanmax(values) == np.nanmin(values):
                continue
            low, high = float(np.nanmin(values)), float(np.nanmax(values))
            limits = f"{style.short_number(float(f'{low:.3g}'))} to {style.short_number(float(f'{high:.3g}'))}"
            text = f"{'total' if part == 'loss' else name_of(part)}  ({limits})"
            colour, line = style.COLOURS[drawn % len(style.COLOURS)], dashes[drawn // len(style.COLOURS) % 4]
            width = 4.0 if part == "loss" else 1.6  # so that it shows behind a component that makes up most of it
            axes.plot(steps, (values - low) / (high - low), color=colour, linestyle=line, linewidth=width, label=text)
            drawn += 1
        mark_events(axes, run)
        style.step_axis(axes)
        axes.set_ylabel("share of own range")
        axes.set_ylim(-0.03, 1.03)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="smallest to largest", alignment="left")
        return style.save(figure, path)


def glance(run: RunLog) -> tuple[list[Callable], list[str]]:
    """The panels of the run at a glance that the log has numbers for, and the names of those it has none for."""
    panels = {
        "loss": (_loss_panel, len(run.column("loss")[1])),
        "components of the loss": (_components_panel, len(_main_parts(run))),
        "validation": (_validation_panel, any(_validation_names(run))),
        "learning rate": (_rate_panel, len(run.column("lr")[1])),
        "throughput": (_throughput_panel, len(run.column(_throughput_of(run))[1])),
        "memory": (_memory_panel, len(run.column("memory_gb")[1])),
    }
    absent = [name for name, (_, there) in panels.items() if not there]
    return [draw for draw, there in panels.values() if there], absent


def six_panels(run: RunLog, path: Path) -> Path:
    """The run at a glance: loss, components, validation, learning rate, throughput, memory; what the log has of it."""
    shown, _ = glance(run)
    columns = max(len(shown), 1) if len(shown) < 4 else -(-len(shown) // 2)
    rows = -(-max(len(shown), 1) // columns)
    title = f"{run.name}: the run at a glance"
    with style.drawing(rows, columns, (4.5 * max(columns, 2), 3.15 * rows + 0.4), title) as (figure, grid):
        for axes, draw in zip(grid.flat, shown, strict=False):
            draw(axes, run)
            mark_events(axes, run)
            style.step_axis(axes)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        return style.save(figure, path)


def _loss_panel(axes: Any, run: RunLog) -> None:
    steps, losses = run.column("loss")
    curve(axes, steps, losses, style.BLUE)
    style.pick_scale(axes, losses)
    style.label(axes, "Loss", y="total loss")


def _components_panel(axes: Any, run: RunLog) -> None:
    parts = _main_parts(run)
    for part, colour in zip(parts, style.COLOURS[1:], strict=False):
        steps, values = run.column(part)
        axes.plot(steps, smooth(values), color=colour, label=name_of(part))
    style.pick_scale(axes, np.concatenate([run.column(part)[1] for part in parts]))
    style.label(axes, "Components (smoothed)", y="loss")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8, columnspacing=1.2)


def _rate_panel(axes: Any, run: RunLog) -> None:
    axes.plot(*run.column("lr"), color=style.GREEN)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    style.label(axes, "Learning rate", y="learning rate")


def _throughput_of(run: RunLog) -> str:
    return "samples_per_second" if len(run.column("samples_per_second")[1]) else "steps_per_second"


def _throughput_panel(axes: Any, run: RunLog) -> None:
    name = _throughput_of(run)
    curve(axes, *run.column(name), style.YELLOW)
    axes.set_ylim(bottom=0)
    style.label(axes, "Throughput", y=UNITS[name])


def _memory_panel(axes: Any, run: RunLog) -> None:
    steps, values = run.column("memory_gb")
    axes.plot(steps, values, color=style.ORANGE)
    axes.set_ylim(0, max(float(np.nanmax(values, initial=0)), 1e-3) * 1.1)
    style.label(axes, "Memory", y="memory [GB]")


def _main_parts(run: RunLog) -> list[str]:
    """The up to five components that are losses, of ones that ever move."""
    moving = []
    for part in run.loss_parts():
        values = run.column(part)[1]
        if part not in NO_LOSSES and np.isfinite(values).any() and np.nanstd(values) > 0:
            moving.append(part)
    return moving[:5]


def _validation_names(run: RunLog) -> tuple[str | None, str | None]:
    """Which metrics the panel shows: an error on the left, PSNR or SSIM on the right; else whatever was measured."""
    written = dict.fromkeys(name for row in run.validations for name in row if name not in {"step", "time"})
    have = [name for name in written if len(run.validation_column(name)[1])]
    left = next((name for name in ("nmse", "rmse", "rmse_db", "mae", "mae_db", "lpips", "loss") if name in have), None)
    right = next((name for name in ("psnr", "ssim") if name in have), None)
    return (next(iter(have), None), None) if left is None and right is None else (left, right)


def _validation_panel(axes: Any, run: RunLog) -> None:
    """NMSE or RMSE on the left axis, PSNR (or SSIM) on the right, best values ringed."""
    left, right = _validation_names(run)
    for i, (name, colour) in enumerate(((left, style.BLUE), (right, style.ORANGE))):
        if name is None:
            continue
        here = axes if i == 0 or left is None else axes.twinx()
        steps, values = run.validation_column(name)
        line = {"marker": "s", "linestyle": "--"} if i else {"marker": "o"}  # told apart where they cover each other
        here.plot(steps, values, markersize=3.5 + i, color=colour, **line)
        if np.isfinite(values).any():
            best = int(np.nanargmax(values) if name in HIGHER_IS_BETTER else np.nanargmin(values))
            here.plot(steps[best], values[best], "o", markersize=11, markerfacecolor="none", color=colour)
        if name in ("nmse", "lpips", "rmse", "mae"):
            style.pick_scale(here, values)
        here.set_ylabel(UNITS.get(name, name), color=colour)
        here.tick_params(axis="y", colors=colour)
        if here is not axes:
            here.grid(False)
            here.spines["right"].set_visible(True)
    axes.set_title("Validation (best ringed)")


# Several runs ------------------------------------------------------------------------------------------------------


def overlay(runs: list[RunLog], path: Path) -> Path:
    """Several runs in one picture: loss and validation metrics over the steps, a colour a run."""
    metrics = [
        name for name in ("nmse", "rmse", "psnr", "ssim") if any(len(r.validation_column(name)[1]) for r in runs)
    ]
    panels = ["loss", *metrics][:4]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    size = (6.2 * columns if columns > 1 else 9.5, 3.4 * rows + 0.6)
    with style.drawing(rows, columns, size, f"{len(runs)} runs compared") as (figure, grid):
        for axes, name in zip(grid.flat, panels, strict=False):
            for i, run in enumerate(runs):
                colour, line = style.COLOURS[i % 8], ("-", "--", ":", "-.")[i // 8 % 4]
                if name == "loss":
                    steps, values = run.column("loss")
                    axes.plot(steps, smooth(values), color=colour, linestyle=line, label=run.name)
                else:
                    steps, values = run.validation_column(name)
                    axes.plot(steps, values, marker="o", markersize=3, color=colour, linestyle=line)
            series = [run.column("loss")[1] if name == "loss" else run.validation_column(name)[1] for run in runs]
            style.pick_scale(axes, np.concatenate(series))
            title = "Loss (smoothed)" if name == "loss" else f"Validation {name.upper()}"
            style.label(axes, title, y="total loss" if name == "loss" else UNITS[name])
            style.step_axis(axes)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        figure.legend(loc="outside lower center", ncols=min(len(runs), 3))
        return style.save(figure, path)

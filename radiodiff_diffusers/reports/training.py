"""A training run as a page: a summary to act on, the figures, resumes, guard events, and how the pictures developed.

from radiodiff_diffusers.reports.training import write_report
markdown, page = write_report("runs/my_ldm")
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from . import training_figures as figures
from .development import change_table, draw_development, validation_pictures
from .diagnosis import best_values, diagnose, duration, progress, trend
from .document import Document, counted, format_cell
from .run_log import RunLog, find_logs, read_run, resume_table

logger = logging.getLogger(__name__)
FIGURES = (
    ("summary", figures.six_panels, "Loss, components, validation, learning rate, throughput and memory."),
    ("phases", figures.phases, "Total loss: the record pale, its running mean strong. Dashed: the GAN's start."),
    ("components", figures.components, "Each component of the loss on its own scale; dotted lines are resumes."),
    ("multi_axis", figures.multi_axis, "Quantities of different size together (running means), an axis each."),
    ("normalised", figures.normalised, "Running means brought to 0..1, to see what moves when."),
)


def write_report(
    run_path: str | Path, output: str | Path | None = None, refresh: int | None = None
) -> tuple[Path, Path]:
    """Write (or update in place) the report of one run; returns its Markdown and HTML files.

    Args:
        run_path (path): a run's folder, its `metrics.jsonl`, or a text log of the original programs.
        output (path, *optional*): the report's folder; by default `report` inside the run's folder.
        refresh (`int`, *optional*): make the page reload itself every so many seconds.
    """
    run = read_run(run_path)
    folder = Path(output) if output else default_output(run_path)
    document = Document(f"Training report: {run.name}", refresh_seconds=refresh)
    pictures, missing = validation_pictures(run)
    _summary(document, run)
    document.heading("Figures")
    together = [figures.components, figures.multi_axis, figures.normalised] if run.loss_parts() else []
    absent = figures.glance(run)[1]
    if absent:
        document.text(f"Not in the log, so not in the figures: {', '.join(absent)}.")
    for name, draw, caption in FIGURES:
        if draw not in (figures.six_panels, figures.phases, *together):
            continue
        document.figure(draw(run, folder / "figures" / f"{name}.png"), caption)
    _development(document, run, pictures, missing, folder)
    _resumes_and_guards(document, run)
    _details(document, run)
    return document.write(folder)


def default_output(run_path: str | Path) -> Path:
    """`report` in the run's folder; a lone log file gets a folder of its own name beside it."""
    path = Path(run_path)
    if path.is_dir():
        return path / "report"
    return path.parent / ("report" if path.suffix == ".jsonl" else f"report_{path.stem}")


def _summary(document: Document, run: RunLog) -> None:
    far = progress(run)
    document.heading("In short")
    parts = [f"**{run.last_step:,}** steps"]
    if far["total"]:
        parts = [f"**{run.last_step:,} of {far['total']:,} steps ({far['share']:.1%})**"]
    if "hours" in far:
        parts.append(f"{duration(far['hours'] * 3600)} of training")
    if far.get("seconds_per_step"):
        parts.append(f"{duration(far['seconds_per_step'])} a step")
    if far.get("hours_left"):
        parts.append(f"about {duration(far['hours_left'] * 3600)} to go at this pace")
    if run.status:
        parts.append(f"status: {run.status}")
    document.text(", ".join(parts) + ".")
    change = trend(run)
    if change is not None:
        relative, span = change
        word = "falling" if relative < -0.005 else "rising" if relative > 0.005 else "level"
        document.text(f"Trend: the smoothed loss is {word}, {relative:+.2%} over the last {span:,} steps.")
    for finding in diagnose(run):
        document.note(finding.kind, finding.text + (f" Try: {finding.advice}" if finding.advice else ""))
    rows = best_values(run)
    if rows:
        document.table(
            ["what", "best", "at step", "latest", "at step"],
            [[figures.spoken(r["what"]), r["best"], r["best_step"], r["last"], r["last_step"]] for r in rows],
        )


def _development(document: Document, run: RunLog, pictures: list, missing: list[str], folder: Path) -> None:
    if not pictures and not missing:
        return
    document.heading("Validation pictures")
    if missing:
        names = ", ".join(missing[:5]) + (" and more" if len(missing) > 5 else "")
        document.note("info", f"{counted(len(missing), 'validation picture')} missing or not readable: {names}.")
    if not pictures:
        return
    path = draw_development(run, pictures, folder / "figures" / "development.png")
    document.figure(
        path, "The first and the last five validation pictures; below each, what changed since the one before."
    )
    rows = change_table(pictures)
    if rows:
        document.table(["from", "to", "mean change [gray levels]"], rows)
    title, file = pictures[-1]
    copy = folder / "figures" / f"latest{file.suffix.lower()}"
    copy.write_bytes(file.read_bytes())
    document.figure(copy, f"The latest validation picture in full, {title}.")


def _resumes_and_guards(document: Document, run: RunLog) -> None:
    if run.resumes:
        document.heading("Resumes")
        document.text("Mean loss of up to ten records before and after each point where the run was taken up again.")
        document.table(
            ["step", "from", "loss before", "loss after", "change", "records went over again"],
            [
                [
                    row["step"],
                    row.get("from") or "found from the step count",
                    row["loss_before"],
                    row["loss_after"],
                    None if row["change"] is None else f"{row['change']:+.1%}",
                    f"{row['steps_lost']:,} steps" if row["steps_lost"] else "none",
                ]
                for row in resume_table(run)
            ],
        )
    if run.guards:
        document.heading("Guard events")
        document.text("What the training guard did about bad batches and bad steps, the latest first.")
        shown = run.guards[::-1][:50]
        document.table(
            ["step", "what", "detail", "files"],
            [
                [
                    int(g["step"]),
                    str(g.get("kind", "")).replace("_", " "),
                    g.get("detail") or "",
                    _files(g.get("files")),
                ]
                for g in shown
            ],
        )
        if len(run.guards) > len(shown):
            document.text(f"{len(run.guards) - len(shown):,} earlier events are not shown.")


def _details(document: Document, run: RunLog) -> None:
    document.heading("Details")
    if run.checkpoints:
        last, count = run.checkpoints[-1], counted(len(run.checkpoints), "checkpoint")
        document.text(f"{count}, the last `{last.get('path', '')}` at step {last['step']:,}.")
    if run.recipe:
        document.text(f"Recipe: `{run.recipe}`.")
    if run.config:
        document.table(["option", "value"], [[f"`{k}`", str(v)] for k, v in flatten(run.config).items()])
    counts = (counted(len(run.train), "training record"), counted(len(run.validations), "validation"))
    document.text(f"{counts[0]} and {counts[1]} were read.")
    if run.damaged:
        document.text(f"{counted(len(run.damaged), 'line')} could not be read:")
        document.items(run.damaged[:20] + (["and more"] if len(run.damaged) > 20 else []))


def flatten(config: dict, prefix: str = "") -> dict:
    """{"model": {"dim": 1}} as {"model.dim": 1}."""
    flat = {}
    for key, value in config.items():
        flat.update(
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
        )
    return flat


def _files(files: object) -> str:
    files = [files] if isinstance(files, str) else list(files or [])
    return ", ".join(map(str, files[:4])) + (f" and {len(files) - 4} more" if len(files) > 4 else "")


# Several runs ------------------------------------------------------------------------------------------------------


def write_reports(paths: list[str | Path], output: str | Path | None = None, workers: int | None = None) -> dict:
    """One report a run, in parallel; returns {run path: HTML file or the error}. A run that fails stops no other."""
    tasks = {str(path): (None if output is None else Path(output) / _unique_name(path, paths)) for path in paths}
    results: dict[str, Path | str] = {}
    if len(tasks) == 1:
        return {path: _try_report(path, folder) for path, folder in tasks.items()}
    context = multiprocessing.get_context("spawn")  # a fork of a process with running threads can hang
    with ProcessPoolExecutor(min(len(tasks), workers or 2), context) as pool:
        jobs = {path: pool.submit(_try_report, path, folder) for path, folder in tasks.items()}
        for path, job in jobs.items():
            results[path] = job.result()
    return results


def _try_report(path: str, folder: Path | None) -> Path | str:
    try:
        return write_report(path, folder)[1]
    except ValueError as error:
        return str(error)


def _unique_name(path: str | Path, paths: list[str | Path]) -> str:
    name = (
        Path(path).resolve().name if Path(path).is_dir() else f"{Path(path).resolve().parent.name}_{Path(path).stem}"
    )
    same = [p for p in paths if Path(p).resolve().name == Path(path).resolve().name]
    return name if len(same) == 1 else f"{name}_{list(map(str, paths)).index(str(path)) + 1}"


def write_overlay(paths: list[str | Path], output: str | Path) -> tuple[Path, Path]:
    """One page that lays several runs over each other, with a row a run."""
    runs, failed = [], []
    for path in paths:
        try:
            runs.append(read_run(path))
        except ValueError as error:
            failed.append(str(error))
    if not runs:
        raise ValueError("; ".join(failed))
    names = [run.name for run in runs]
    for i, run in enumerate(runs):
        if names.count(run.name) > 1:
            run.name = f"{run.name} ({i + 1})"
    folder = Path(output)
    document = Document(f"{len(runs)} training runs compared")
    document.heading("In short")
    for text in failed:
        document.note("warn", text)
    keys = list(dict.fromkeys(str(row["what"]) for run in runs for row in best_values(run)))
    rows = []
    for run in runs:
        best = {str(row["what"]): row for row in best_values(run)}
        worst = diagnose(run)[0]
        values = [f"{format_cell(best[k]['best'])} at {best[k]['best_step']:,}" if k in best else None for k in keys]
        rows.append([run.name, run.last_step, *values, worst.text])
    document.table(["run", "steps", *(f"best {figures.spoken(key)}" for key in keys), "first finding"], rows)
    document.heading("Curves")
    document.figure(figures.overlay(runs, folder / "figures" / "overlay.png"), "The same quantities of all runs.")
    return document.write(folder)


# Following a live run ----------------------------------------------------------------------------------------------


def watch(run_path: str | Path, output: str | Path | None = None, interval: float = 30.0, rounds: int | None = None):
    """Update the report whenever the log has grown; yields the page after each update, until the run ends.

    `rounds` limits how often the log is looked at (`None`: no limit). A log that is not there yet is waited for.
    """
    seen: tuple | None = None
    while rounds is None or rounds > 0:
        ended = False
        try:
            stamp = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in find_logs(run_path))
            if stamp != seen:
                seen = stamp
                page = write_report(run_path, output, refresh=max(int(interval), 5))[1]
                ended = read_run(run_path).status is not None
                yield page
        except ValueError as error:
            logger.info("waiting: %s", error)
        if ended:
            return
        rounds = None if rounds is None else rounds - 1
        if rounds is None or rounds > 0:
            time.sleep(interval)

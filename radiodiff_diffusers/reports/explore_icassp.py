"""The ICASSP-2025 indoor set as figures: antennas and their patterns, walls, path loss, free space against truth.

Layout: `Inputs/<task>/B1_Ant1_f1_S0.png` (red reflectance in dB, green transmittance in dB, blue distance in metres),
`Outputs/<task>/` of the same names (gray is the path loss in dB), `Positions/Positions_B1_Ant1_f1.csv` and
`Radiation_Patterns/Ant1_Pattern.csv`.
"""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import style
from .document import Document, counted
from .parallel import read_gray, run_parallel

NAME = re.compile(r"B(\d+)_Ant(\d+)_f(\d+)_S(\d+)$")
FREQUENCIES_HZ = {1: 868e6, 2: 1.8e9, 3: 3.5e9}
METRES_PER_PIXEL = 0.25
PICTURES = (".png",)
LEVELS = np.arange(256)


@dataclass(frozen=True)
class Sample:
    building: int
    antenna: int
    frequency: int
    number: int
    input: Path | None
    output: Path | None

    @property
    def name(self) -> str:
        return f"B{self.building}_Ant{self.antenna}_f{self.frequency}_S{self.number}"


def find_samples(root: Path, first: bool = False) -> list[Sample]:
    """Every sample by its name, with its input and its output picture where they exist; tasks repeat each other."""
    inputs: dict[str, Path] = {}
    outputs: dict[str, Path] = {}
    for path in sorted(Path(root).rglob("*.png")):
        if not NAME.match(path.stem) or "explore" in path.relative_to(root).parts:
            continue
        folders = " ".join(path.relative_to(root).parts[:-1]).lower()
        is_output = "output" in folders or "edge" in folders.split()
        (outputs if is_output else inputs).setdefault(path.stem, path)
        if first:
            break
    names = sorted({*inputs, *outputs}, key=lambda name: tuple(map(int, NAME.match(name).groups())))
    return [Sample(*map(int, NAME.match(name).groups()), inputs.get(name), outputs.get(name)) for name in names]


# Side files --------------------------------------------------------------------------------------------------------


def read_patterns(root: Path, damaged: list[str]) -> dict[int, np.ndarray]:
    """Gain in dB at 0..359 degrees, by antenna."""
    patterns = {}
    for path in sorted(Path(root).rglob("Ant*_Pattern.csv")):
        number = re.match(r"Ant(\d+)", path.stem)
        try:
            rows = [row for row in csv.reader(path.read_text().splitlines()) if row]
            numbers = [_last_float(row) for row in rows]
            values = np.array([value for value in numbers if value is not None])
            if len(values) != 360:
                raise ValueError(f"{len(values)} gains where 360 were expected, one a degree")
            patterns[int(number[1])] = values
        except (OSError, ValueError) as error:
            damaged.append(f"{path.relative_to(root)}: {error}")
    return patterns


def read_positions(root: Path, damaged: list[str]) -> dict[tuple[int, int, int], list[tuple[float, float, float]]]:
    """(x, y, azimuth) of every sample, by (building, antenna, frequency)."""
    positions = {}
    for path in sorted(Path(root).rglob("Positions_B*.csv")):
        key = re.match(r"Positions_B(\d+)_Ant(\d+)_f(\d+)", path.stem)
        try:
            rows = list(csv.DictReader(path.read_text().splitlines()))
            named = [{str(k).strip().lower(): v for k, v in row.items()} for row in rows]
            places = [(float(r["x"]), float(r["y"]), float(r.get("azimuth") or 0.0)) for r in named]
            if key and places:
                positions[tuple(map(int, key.groups()))] = places
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(f"{path.relative_to(root)}: no readable X, Y, Azimuth columns ({error})")
    return positions


def _last_float(row: list[str]) -> float | None:
    try:
        return float(row[-1])
    except ValueError:
        return None


def free_space_loss(
    shape: tuple[int, int], place: tuple[float, float, float], frequency_hz: float, pattern: np.ndarray | None
) -> np.ndarray:
    """Path loss in dB without walls, less the antenna's gain towards each pixel; distances count from 0.125 m up."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    distance = np.maximum(np.hypot(x - place[0], y - place[1]) * METRES_PER_PIXEL, 0.125)
    loss = 20 * np.log10(distance) + 20 * np.log10(frequency_hz / 1e6) - 27.55
    if pattern is not None:
        angle = -np.degrees(np.arctan2(place[1] - y, place[0] - x)) + 180 + place[2]
        loss = loss - pattern[np.rint(angle).astype(int) % 360]
    return loss


# One pass ----------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    root: Path
    sample: Sample
    place: tuple[float, float, float] | None
    pattern: np.ndarray | None


@dataclass
class SampleResult:
    sample: Sample
    shape: tuple[int, int] | None = None
    place: tuple[float, float, float] | None = None
    loss: np.ndarray | None = None
    reflectance: np.ndarray | None = None
    transmittance: np.ndarray | None = None
    free_against_true: np.ndarray | None = None
    damaged: list[str] = field(default_factory=list)


def scan_sample(job: Job) -> SampleResult:
    result = SampleResult(job.sample)
    rgb = _read_rgb(job, result)
    loss = None
    if job.sample.output is not None:
        try:
            loss = read_gray(job.sample.output)
            result.loss = np.bincount(loss.ravel(), minlength=256)
            result.shape = loss.shape
        except OSError as error:
            result.damaged.append(str(error))
    if rgb is not None:
        result.shape = rgb.shape[:2]
        result.reflectance = np.bincount(rgb[..., 0].ravel(), minlength=256)
        result.transmittance = np.bincount(rgb[..., 1].ravel(), minlength=256)
    place = result.place = in_column_and_row(job.place, rgb)
    frequency = FREQUENCIES_HZ.get(job.sample.frequency)
    if loss is not None and place is not None and frequency is not None:
        free = np.clip(free_space_loss(loss.shape, place, frequency, job.pattern), 0, 199).astype(np.int32)
        result.free_against_true = np.bincount(
            (free // 2).ravel() * 128 + (loss // 2).ravel(), minlength=100 * 128
        ).reshape(100, 128)
    return result


def in_column_and_row(
    place: tuple[float, float, float] | None, rgb: np.ndarray | None
) -> tuple[float, float, float] | None:
    """The place as (x, y, azimuth): some copies of the set name row and column X and Y; the distances tell."""
    if place is None or rgb is None or not rgb[..., 2].any():
        return place
    from ..data.icassp2025_files import distance_error

    x, y, azimuth = place
    distance = rgb[..., 2].astype(np.float32)
    return min(((x, y), (y, x)), key=lambda here: distance_error(distance, here)) + (azimuth,)


def _read_rgb(job: Job, result: SampleResult) -> np.ndarray | None:
    from PIL import Image

    if job.sample.input is None:
        return None
    try:
        with Image.open(job.sample.input) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        result.damaged.append(f"{job.sample.input.relative_to(job.root)}: {error}")
        return None


# The document ------------------------------------------------------------------------------------------------------


def describe(root: Path, folder: Path, workers: int | None, seed: int, progress: bool) -> Document:
    from .explore import add_damaged, add_figures, list_damaged

    samples = find_samples(root)
    if not samples:
        raise ValueError(f"{root} holds no picture named like B1_Ant1_f1_S0.png: is it the ICASSP-2025 set?")
    damaged: list[str] = []
    patterns, positions = read_patterns(root, damaged), read_positions(root, damaged)
    jobs = []
    for s in samples:
        places = positions.get((s.building, s.antenna, s.frequency), [])
        jobs.append(Job(root, s, places[s.number] if s.number < len(places) else None, patterns.get(s.antenna)))
    weights = [(s.input is not None) + (s.output is not None) for s in samples]
    results = list(run_parallel(scan_sample, jobs, workers, "reading samples", weights, progress))
    damaged += [text for result in results for text in result.damaged]

    document = Document(f"Data set: {root.resolve().name}")
    document.heading("In short")
    buildings, antennas = sorted({s.building for s in samples}), sorted({s.antenna for s in samples})
    frequencies = sorted({s.frequency for s in samples})
    named = ", ".join(_frequency_name(f) for f in frequencies)
    document.text(
        f"**{len(samples):,} samples** of {len(buildings)} buildings, {len(antennas)} antennas and {len(frequencies)} "
        f"frequencies ({named})."
    )
    add_damaged(document, damaged)
    for what, lacking in (
        ("an input picture", [s.name for s in samples if s.input is None]),
        ("an output picture", [s.name for s in samples if s.output is None]),
        ("a position", [job.sample.name for job in jobs if job.place is None]),
        ("an antenna pattern", [job.sample.name for job in jobs if job.pattern is None]),
    ):
        if lacking:
            shown = ", ".join(lacking[:5]) + (" and more" if len(lacking) > 5 else "")
            document.note("warn", f"{counted(len(lacking), 'sample')} without {what}: {shown}.")

    def at(name: str) -> Path:
        return folder / "figures" / f"{name}.png"

    add_figures(
        document,
        [
            ("What is there", "Samples by building, antenna and frequency.", _counts(samples, at("counts")), ""),
            ("Sizes and transmitters", "How large the buildings are, and where transmitters stand and look.",
             _places(results, at("places")), "No picture could be read."),
            ("Antennas", "Radiation patterns, polar and flat.", _patterns(patterns, at("patterns")),
             "There is no Radiation_Patterns folder."),
            ("Path loss", "Histograms of the path loss in dB.", _losses(results, at("path_loss")),
             "There are no output pictures."),
            ("Walls", "Reflectance and transmittance of the pixels that are walls.", _walls(results, at("walls")),
             "There are no input pictures."),
            ("Free space against truth", "What free space and the antenna explain; above the line walls add to it.",
             _free_against_true(results, at("free_space")), "There are no positions, so no free-space loss."),
            ("Samples", "Inputs, the free-space channel, and the truth.", _samples(jobs, at("samples"), seed),
             "There is no sample with both pictures."),
        ],
    )  # fmt: skip
    list_damaged(document, damaged)
    return document


def _frequency_name(f: int) -> str:
    return f"f{f} {FREQUENCIES_HZ[f] / 1e9:g} GHz" if f in FREQUENCIES_HZ else f"f{f}"


def _counts(samples: list[Sample], path: Path) -> Path:
    buildings = sorted({s.building for s in samples})
    columns = sorted({(s.antenna, s.frequency) for s in samples})
    counts = Counter((s.building, s.antenna, s.frequency) for s in samples)
    table = np.array([[counts[(b, *c)] for c in columns] for b in buildings])
    size = (max(5.5, 0.62 * len(columns) + 2.5), max(3.0, 0.3 * len(buildings) + 1.4))
    with style.drawing(size=size, title="Samples by building, antenna and frequency") as (figure, grid):
        axes = grid[0, 0]
        image = axes.imshow(np.ma.masked_equal(table, 0), cmap=style.SPREAD_COLOURS, vmin=0, aspect="auto")
        axes.set_facecolor("#DDDDDD")
        axes.set_xticks(range(len(columns)), [f"Ant{a}\nf{f}" for a, f in columns])
        axes.set_yticks(range(len(buildings)), [f"B{b}" for b in buildings])
        for (i, j), value in np.ndenumerate(table):
            ink = "black" if value > 0.6 * table.max() else "white"
            axes.text(j, i, value or "none", ha="center", va="center", fontsize=8, color=ink if value else "black")
        axes.grid(False)
        style.label(axes, "", "antenna and frequency", "building")
        figure.colorbar(image, ax=axes, label="samples")
        return style.save(figure, path)


def _places(results: list[SampleResult], path: Path) -> Path | None:
    shapes = {r.sample.building: r.shape for r in results if r.shape}
    if not shapes:
        return None
    with style.drawing(1, 3, (13.5, 4.1), "Sizes and transmitters") as (figure, grid):
        a, b, c = grid[0]
        heights, widths = np.array(list(shapes.values())).T * METRES_PER_PIXEL
        a.plot(widths, heights, "o", color=style.BLUE)
        for building, w, h in zip(shapes, widths, heights, strict=True):
            a.annotate(f"B{building}", (w, h), textcoords="offset points", xytext=(4, 3), fontsize=7)
        style.label(a, "Size of the buildings", "width [m]", "height [m]")
        a.margins(0.12)
        placed = [(r, shapes[r.sample.building]) for r in results if r.place and r.sample.building in shapes]
        if placed:
            x = [r.place[0] / shape[1] for r, shape in placed]
            y = [r.place[1] / shape[0] for r, shape in placed]
            b.plot(x, y, ".", markersize=3, alpha=0.4, color=style.BLUE)
            b.set(xlim=(0, 1), ylim=(1, 0))
            style.label(b, f"Transmitters: {len(placed):,}", "share of the width", "share of the height, downwards")
            directed = [r.place[2] % 360 for r, _ in placed if r.sample.antenna != 1]
            if directed:
                c.hist(directed, bins=np.arange(0, 361, 15), color=style.BLUE)
                c.set_xticks(range(0, 361, 90))
                style.label(c, "Where directed antennas look", "azimuth [degrees]", "samples")
                style.count_axis(c)
            else:
                style.message(c, "no directed antennas")
        else:
            style.message(b, "no positions")
            style.message(c, "no positions")
        return style.save(figure, path)


def _patterns(patterns: dict[int, np.ndarray], path: Path) -> Path | None:
    if not patterns:
        return None
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low = max(min(float(p.min()) for p in patterns.values()), max(float(p.max()) for p in patterns.values()) - 60)
    with matplotlib.rc_context({**style.RC, "axes.prop_cycle": cycler(color=style.COLOURS)}):
        figure = Figure(figsize=(12, 4.8), dpi=style.DPI, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle("Radiation patterns", x=0.01, ha="left", fontsize=13, fontweight="bold")
        polar = figure.add_subplot(1, 2, 1, projection="polar")
        flat = figure.add_subplot(1, 2, 2)
        angles = np.arange(360)
        for number, gain in sorted(patterns.items()):
            text = f"Ant{number}, range {np.ptp(gain):.1f} dB"
            polar.plot(np.radians(np.append(angles, 360)), np.append(gain, gain[0]).clip(low))
            flat.plot(angles, gain, label=text)
        polar.set_theta_zero_location("N")
        polar.set_theta_direction(-1)
        polar.set_rlabel_position(100)
        polar.set_title("Gain [dB] by direction, 0 is boresight")
        flat.set_xticks(range(0, 361, 45))
        style.label(flat, "The same, flat", "angle off boresight [degrees]", "gain [dB]")
        flat.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        return style.save(figure, path)


def _sum(results: list[SampleResult], name: str, key: Any = lambda sample: 0) -> dict[Any, np.ndarray]:
    sums: dict[Any, np.ndarray] = defaultdict(lambda: 0)
    for result in results:
        value = getattr(result, name)
        if value is not None:
            sums[key(result.sample)] = sums[key(result.sample)] + value
    return dict(sums)


def _losses(results: list[SampleResult], path: Path) -> Path | None:
    groups = (
        ("frequency", lambda s: s.frequency, _frequency_name),
        ("antenna", lambda s: s.antenna, lambda a: f"Ant{a}"),
        ("building", lambda s: s.building, lambda b: f"B{b}"),
    )
    if not _sum(results, "loss"):
        return None
    with style.drawing(1, 3, (14.5, 4.1), "Path loss of all pixels") as (figure, grid):
        for axes, (what, key, name) in zip(grid[0], groups, strict=True):
            sums = _sum(results, "loss", key)
            if what == "building":
                _mean_by_building(axes, sums)
                continue
            for group, counts in sorted(sums.items()):
                saturated = counts[160:].sum() / counts.sum()
                text = f"{name(group)} ({saturated:.0%} at 160 dB or more)"
                axes.step(LEVELS[:160], counts[:160] / counts.sum(), where="mid", label=text)
            style.label(axes, f"By {what}", "path loss [dB]", "density [1/dB]")
            axes.set_ylim(0, axes.get_ylim()[1] * (1.1 + 0.08 * len(sums)))
            axes.legend(loc="upper left")
        return style.save(figure, path)


def _mean_by_building(axes: Any, sums: dict[int, np.ndarray]) -> None:
    """Median with the middle half, a bar a building."""
    buildings = sorted(sums)
    quantiles = []
    for b in buildings:
        share = np.cumsum(sums[b]) / sums[b].sum()
        quantiles.append([int(np.searchsorted(share, q)) for q in (0.25, 0.5, 0.75)])
    low, middle, high = np.array(quantiles).T
    axes.vlines(range(len(buildings)), low, high, color=style.SKY, linewidth=5)
    axes.plot(range(len(buildings)), middle, "_", color=style.BLACK, markersize=9)
    axes.set_xlim(-0.7, max(len(buildings), 6) - 0.3)
    axes.set_xticks(range(len(buildings)), [f"B{b}" for b in buildings], rotation=90, fontsize=8)
    style.label(axes, "By building: median and middle half", "building", "path loss [dB]")


def _walls(results: list[SampleResult], path: Path) -> Path | None:
    if not _sum(results, "reflectance"):
        return None
    with style.drawing(1, 2, (10.5, 3.8), "Walls") as (figure, grid):
        for axes, name in zip(grid[0], ("reflectance", "transmittance"), strict=True):
            counts = _sum(results, name)[0]
            walls = counts[1:]
            last = int(np.flatnonzero(walls).max(initial=0)) + 2
            axes.bar(LEVELS[1:last], walls[: last - 1] / max(walls.sum(), 1), width=1.0, color=style.BLUE)
            share = walls.sum() / counts.sum()
            style.label(
                axes,
                f"{name.capitalize()}: {share:.1%} of the pixels",
                "at normal incidence [dB]",
                "share of wall pixels",
            )
            style.percent_axis(axes)
        return style.save(figure, path)


def _free_against_true(results: list[SampleResult], path: Path) -> Path | None:
    sums = _sum(results, "free_against_true", lambda s: s.frequency)
    if not sums:
        return None
    frequencies = sorted(sums)
    columns = len(frequencies)
    size = (4.4 * columns + 1.2, 4.3)
    with style.drawing(1, columns, size, "Free-space loss with antenna pattern, against the truth") as (figure, grid):
        image = None
        for axes, f in zip(grid[0], frequencies, strict=True):
            counts = sums[f].astype(float)
            free, true = np.mgrid[:100, :128] * 2 + 1
            excess = (counts * (true - free)).sum() / counts.sum()
            density = np.ma.masked_equal(counts.T / counts.sum() / 4, 0)
            image = axes.imshow(
                density, origin="lower", extent=(0, 200, 0, 256), aspect="auto", cmap=style.SPREAD_COLOURS, norm="log"
            )
            axes.plot([20, 160], [20, 160], color=style.ORANGE, linestyle="--", label="equal")
            axes.set(xlim=(10, 170), ylim=(10, 170))
            title = f"{_frequency_name(f)}: {excess:+.1f} dB on average"
            style.label(axes, title, "free-space loss [dB]", "true path loss [dB]")
            axes.legend(loc="upper left")
        figure.colorbar(image, ax=grid, label="density [1/dB²]")
        return style.save(figure, path)


def _samples(jobs: list[Job], path: Path, seed: int, rows: int = 3) -> Path | None:
    whole = [job for job in jobs if job.sample.input is not None and job.sample.output is not None]
    if not whole:
        return None
    rng = np.random.default_rng(seed)
    chosen = [whole[i] for i in sorted(rng.choice(len(whole), min(rows, len(whole)), replace=False))]
    with style.drawing(len(chosen), 5, (16.5, 3.1 * len(chosen) + 0.6), "Samples") as (figure, grid):
        for row, job in zip(grid, chosen, strict=True):
            result = SampleResult(job.sample)
            rgb = _read_rgb(job, result)
            try:
                loss = read_gray(job.sample.output).astype(np.float32)
            except OSError:
                loss = None
            if rgb is None or loss is None:
                for axes in row:
                    style.message(axes, f"{job.sample.name}\nis damaged")
                continue
            frequency, place = FREQUENCIES_HZ.get(job.sample.frequency), in_column_and_row(job.place, rgb)
            known = place is not None and frequency is not None
            free = free_space_loss(loss.shape, place, frequency, job.pattern) if known else None
            excess = None if free is None else loss - free
            limit = 0 if excess is None else style.error_limit(excess)
            panels = (
                (rgb[..., 0], f"{job.sample.name}: reflectance", "cividis", None, "[dB]"),
                (rgb[..., 1], "transmittance", "cividis", None, "[dB]"),
                (free, "free space with pattern", "viridis_r", (20, 160), "path loss [dB]"),
                (loss, "path loss (truth)", "viridis_r", (20, 160), "path loss [dB]"),
                (excess, "truth minus free space", style.ERROR_COLOURS, (-limit, limit), "[dB]"),
            )
            for axes, (plane, title, colours, limits, unit) in zip(row, panels, strict=True):
                if plane is None:
                    style.message(axes, "no position known")
                    continue
                low, high = limits or (0, max(float(plane.max()), 1))
                image = axes.imshow(plane, cmap=colours, vmin=low, vmax=high)
                mark = place[:2] if place else None
                on_light = colours == style.ERROR_COLOURS
                style.finish_map(axes, title, plane.shape, mark, METRES_PER_PIXEL, on_light)
                figure.colorbar(image, ax=axes, label=unit, fraction=0.046, pad=0.02)
        return style.save(figure, path)

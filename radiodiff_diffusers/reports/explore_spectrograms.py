"""Pictures in one folder a class (micro-Doppler spectrograms by walker): counts, brightness, means, samples.

Spectrograms are often stored in jet colours, whose brightness goes up and down with the power: such pictures are
turned back into levels, 0 to 255, before anything is measured or drawn.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import style
from .document import Document, counted
from .parallel import run_parallel

PICTURES = {".png", ".jpg", ".jpeg", ".bmp"}
SIDE = 128  # class means are kept at this size
JET_DISTANCE = 24  # in RGB units: as far as rounding and JPEG carry a colour from its place in the scale


@dataclass
class PictureResult:
    label: str
    shape: tuple[int, int] | None = None
    histogram: np.ndarray | None = None
    small: np.ndarray | None = None
    jet: bool = False
    damaged: list[str] = field(default_factory=list)


def find_pictures(root: Path) -> list[tuple[str, Path]]:
    """(class, picture); pictures lying directly in the folder are of no class."""
    found = []
    for path in sorted(Path(root).rglob("*")):
        if path.suffix.lower() in PICTURES and "explore" not in path.relative_to(root).parts:
            parts = path.relative_to(root).parts
            found.append((parts[-2] if len(parts) > 1 else "no class", path))
    return sorted(found, key=lambda item: (_natural(item[0]), item[1]))


def _natural(text: str) -> tuple:
    """ID_2 before ID_10."""
    import re

    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text))


def read_levels(path: Path) -> tuple[np.ndarray, bool]:
    """(H, W) uint8 levels and whether they were stored in jet colours; `OSError` for what cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in {"L", "1", "I", "I;16", "F"}:
                return np.asarray(image.convert("L")), False
            rgb = np.asarray(image.convert("RGB"))
            from ..engines.gait import jet_backwards

            level, distance = jet_backwards()
            few = rgb[::4, ::4]
            coloured = np.ptp(few.astype(np.int16), axis=-1).mean() > 40
            if coloured and np.median(distance[tuple(np.moveaxis(few >> 2, -1, 0))]) < JET_DISTANCE:
                return level[tuple(np.moveaxis(rgb >> 2, -1, 0))], True
            return np.asarray(image.convert("L")), False
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{path}: {error}") from None


def scan_picture(item: tuple[str, Path]) -> PictureResult:
    import cv2

    label, path = item
    result = PictureResult(label)
    try:
        plane, result.jet = read_levels(path)
    except OSError as error:
        result.damaged.append(str(error))
        return result
    result.shape = plane.shape
    result.histogram = np.bincount(plane.ravel(), minlength=256)
    result.small = cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return result


@dataclass
class ClassSums:
    count: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros((SIDE, SIDE)))
    squares: np.ndarray = field(default_factory=lambda: np.zeros((SIDE, SIDE)))
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))


def describe(root: Path, folder: Path, workers: int | None, seed: int, progress: bool) -> Document:
    from .explore import add_damaged, add_figures, list_damaged

    items = find_pictures(root)
    if not items:
        raise ValueError(f"{root} holds no pictures")
    classes: dict[str, ClassSums] = defaultdict(ClassSums)
    shapes: Counter = Counter()
    damaged: list[str] = []
    in_jet = 0
    for result in run_parallel(scan_picture, items, workers, "reading pictures", progress=progress):
        damaged += result.damaged
        if result.shape is None:
            continue
        shapes[result.shape] += 1
        in_jet += result.jet
        sums = classes[result.label]
        sums.count += 1
        sums.mean += result.small
        sums.squares += result.small.astype(np.float64) ** 2
        sums.histogram += result.histogram
    if not classes:
        raise ValueError(f"none of the {len(items)} pictures in {root} can be read; the first: {damaged[0]}")
    document = Document(f"Data set: {root.resolve().name}")
    document.heading("In short")
    sizes = ", ".join(f"{count:,} of {w} x {h}" for (h, w), count in shapes.most_common(4))
    document.text(f"**{sum(shapes.values()):,} pictures of {len(classes)} classes**, {sizes}.")
    add_damaged(document, damaged)
    if in_jet:
        document.note("info", f"{counted(in_jet, 'picture')} in jet colours: levels 0 to 255 are read back from them.")
    counts = {label: sums.count for label, sums in classes.items()}
    if max(counts.values()) > 1.5 * min(counts.values()):
        least, most = min(counts, key=counts.get), max(counts, key=counts.get)
        document.note("warn", f"Unbalanced: {counts[least]:,} pictures of {least}, {counts[most]:,} of {most}.")
    if len(shapes) > 1:
        document.note("warn", f"Pictures of {len(shapes)} sizes; training resizes them all to one.")

    def at(name: str) -> Path:
        return folder / "figures" / f"{name}.png"

    add_figures(
        document,
        [
            ("Counts", "Pictures a class.", _counts(counts, at("counts")), ""),
            (
                "Brightness",
                "Levels of all pictures, and the mean by class.",
                _brightness(classes, at("gray")),
                "",
            ),
            ("Means", "The mean picture of each class.", _means(classes, at("means")), ""),
            ("Profiles", "What a mean picture says along each axis.", _profiles(classes, at("profiles")), ""),
            ("Samples", "One picture of each class, at random.", _samples(items, at("samples"), seed), ""),
        ],
    )
    list_damaged(document, damaged)
    return document


def _counts(counts: dict[str, int], path: Path) -> Path:
    with style.drawing(size=(max(6.0, 0.32 * len(counts) + 2), 3.4), title="Pictures a class") as (figure, grid):
        axes = grid[0, 0]
        axes.bar(list(counts), list(counts.values()), color=style.BLUE)
        axes.tick_params(axis="x", rotation=90)
        axes.grid(axis="x", visible=False)
        style.label(axes, "", "class", "pictures")
        style.count_axis(axes)
        return style.save(figure, path)


def _brightness(classes: dict[str, ClassSums], path: Path) -> Path:
    total = sum(sums.histogram for sums in classes.values())
    with style.drawing(1, 2, (max(10.0, 0.28 * len(classes) + 6), 3.6), "Brightness") as (figure, grid):
        a, b = grid[0]
        # four levels a bin: pictures that were stored in colours have gaps between single levels
        a.stairs(total.reshape(64, 4).sum(1) / total.sum() / 4, np.arange(0, 257, 4), color=style.BLUE)
        a.set_yscale("log")
        style.label(a, "All pixels", "level (0 to 255)", "share of the pixels a level")
        means = [float((s.histogram * np.arange(256)).sum() / s.histogram.sum()) for s in classes.values()]
        b.bar(list(classes), means, color=style.BLUE)
        b.tick_params(axis="x", rotation=90)
        b.grid(axis="x", visible=False)
        style.label(b, "Mean by class", "class", "mean level (0 to 255)")
        return style.save(figure, path)


def _tiles(count: int) -> tuple[int, int]:
    """Rows and columns, as even as can be: ten are two rows of five."""
    rows = -(-count // 8)
    return rows, -(-count // rows)


def _means(classes: dict[str, ClassSums], path: Path) -> Path:
    rows, columns = _tiles(len(classes))
    size = (1.75 * columns + 1.2, 1.95 * rows + 0.6)
    with style.drawing(rows, columns, size, "Mean picture by class") as (figure, grid):
        image = None
        top = max(float((s.mean / s.count).max()) for s in classes.values())
        for axes, (label, sums) in zip(grid.flat, classes.items(), strict=False):
            image = axes.imshow(sums.mean / sums.count, cmap=style.GAIN_COLOURS, vmin=0, vmax=max(top, 1))
            style.finish_map(axes, label, sums.mean.shape)
        for axes in grid.flat[len(classes) :]:
            axes.set_axis_off()
        figure.colorbar(image, ax=grid, label="mean level (0 to 255)", shrink=0.7)
        return style.save(figure, path)


def _profiles(classes: dict[str, ClassSums], path: Path) -> Path:
    """Mean over time by frequency and over frequency by time: all classes pale, the mean of all strong."""
    with style.drawing(1, 2, (11, 3.8), "Profiles of the mean pictures") as (figure, grid):
        for axes, axis, name in ((grid[0, 0], 1, "frequency axis"), (grid[0, 1], 0, "time axis")):
            lines = np.array([(s.mean / s.count).mean(axis) for s in classes.values()])
            where = np.linspace(0, 1, SIDE)
            axes.plot(where, lines.T, color=style.SKY, linewidth=0.7)
            axes.plot(where, lines.mean(0), color=style.BLUE, linewidth=2.4, label="mean of all classes")
            origin = "top to bottom" if axis == 1 else "left to right"
            style.label(axes, f"Along the {name}", f"share of the {name}, {origin}", "mean level (0 to 255)")
            axes.legend()
        return style.save(figure, path)


def _samples(items: list[tuple[str, Path]], path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    by_class: dict[str, list[Path]] = defaultdict(list)
    for label, picture in items:
        by_class[label].append(picture)
    rows, columns = _tiles(len(by_class))
    size = (1.75 * columns + 1.2, 1.95 * rows + 0.6)
    with style.drawing(rows, columns, size, "One picture of each class") as (figure, grid):
        image = None
        for axes, (label, pictures) in zip(grid.flat, by_class.items(), strict=False):
            try:
                plane, _ = read_levels(pictures[int(rng.integers(len(pictures)))])
                image = axes.imshow(plane, cmap=style.GAIN_COLOURS, vmin=0, vmax=255)
                style.finish_map(axes, label, plane.shape)
            except OSError:
                style.message(axes, f"{label}: damaged")
        for axes in grid.flat[len(by_class) :]:
            axes.set_axis_off()
        if image is not None:
            figure.colorbar(image, ax=grid, label="level (0 to 255)", shrink=0.7)
        return style.save(figure, path)

"""A page about the edges of a data set, to choose a detector and its thresholds by: nothing else is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..data.edges import METHODS, EdgeOptions, edge_map, find_images, resize
from . import style
from .document import Document, counted
from .parallel import read_gray, run_parallel

SHOWN = 3


@dataclass(frozen=True)
class _Look:
    path: Path
    options: EdgeOptions


def analyze_edges(
    root: str | Path,
    output: str | Path,
    options: EdgeOptions | None = None,
    include: str = "**/*",
    limit: int = 2000,
    workers: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Path, Path]:
    """Count the images, measure how many pixels each detector marks, show samples; returns the page's two files.

    `limit` images at random are measured; the thresholds of `options` hold for its detector, the others use theirs.
    """
    root, folder = Path(root), Path(output)
    options = options or EdgeOptions()
    images = find_images(root, include)
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(len(images), min(limit, len(images)), replace=False).tolist())
    looks = [_Look(root / images[i], options) for i in chosen]
    results = list(run_parallel(_measure, looks, workers, "measuring", progress=progress))
    good = [r for r in results if isinstance(r, tuple)]
    damaged = [r for r in results if isinstance(r, str)]
    document = Document(f"Edges of {root.resolve().name}")
    document.heading("In short")
    document.text(f"**{len(images):,} images**, {len(looks):,} of them measured.")
    if damaged:
        document.note("bad", f"{counted(len(damaged), 'measured image')} could not be read: listed at the end.")
    if not good:
        raise ValueError(f"none of the {len(looks)} images looked at in {root} can be read; the first: {damaged[0]}")
    sizes = Counter(shape for shape, _ in good)
    document.text("Sizes: " + ", ".join(f"{n:,} of {w} x {h}" for (h, w), n in sizes.most_common(5)) + ".")
    shares = {name: np.array([row[name] for _, row in good]) for name in METHODS}
    document.table(
        ["detector", "low", "high", "edge pixels, median", "10 %", "90 %"],
        [
            [
                name + (" (chosen)" if name == options.method else ""),
                *of_method(options, name).thresholds,
                *(f"{np.quantile(values, q):.2%}" for q in (0.5, 0.1, 0.9)),
            ]
            for name, values in shares.items()
        ],
    )
    document.heading("How much is edge")
    document.figure(
        _shares_figure(shares, options, folder / "figures" / "shares.png"), "Share of pixels marked, by image."
    )
    document.heading("Samples")
    readable = [look.path for look, r in zip(looks, results, strict=True) if isinstance(r, tuple)]
    readable = [readable[int(i)] for i in np.linspace(0, len(readable) - 1, min(SHOWN, len(readable)))]
    document.figure(
        _samples_figure(readable, options, folder / "figures" / "samples.png"), "All detectors on the same images."
    )
    if damaged:
        document.heading("Damaged files")
        document.items([f"`{text}`" for text in damaged[:200]])
    return document.write(folder)


def of_method(options: EdgeOptions, method: str) -> EdgeOptions:
    """The options for another detector: size and blur stay, thresholds are its own."""
    return options if method == options.method else replace(options, method=method, low=None, high=None)


def _measure(look: _Look) -> tuple[tuple[int, int], dict[str, float]] | str:
    try:
        gray = read_gray(look.path)
    except OSError as error:
        return str(error)
    # Gray answers everywhere; what counts as marked there is an answer of a tenth of the range.
    shares = {}
    for name in METHODS:
        edges = edge_map(gray, of_method(look.options, name))
        shares[name] = float((edges >= 26).mean())
    return gray.shape, shares


def _shares_figure(shares: dict[str, np.ndarray], options: EdgeOptions, path: Path) -> Path:
    with style.drawing(size=(9, 3.8), title="Pixels marked as edge (answer of 26 or more of 255)") as (figure, grid):
        axes = grid[0, 0]
        for name, values in shares.items():
            width = 3.0 if name == options.method else 1.5
            style.share_below(axes, values, label=name, linewidth=width)
        style.label(axes, "", "share of the image's pixels", "share of the images at or below")
        style.percent_axis(axes, "x")
        style.percent_axis(axes, "y")
        axes.set_xlim(left=0)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title=f"bold: {options.method}", alignment="left")
        return style.save(figure, path)


def _samples_figure(paths: list[Path], options: EdgeOptions, path: Path) -> Path:
    columns = len(METHODS) + 1
    with style.drawing(len(paths), columns, (2.1 * columns, 2.25 * len(paths) + 0.5), "Samples") as (figure, grid):
        for row, source in zip(grid, paths, strict=True):
            gray = resize(read_gray(source), options.size)
            row[0].imshow(gray, cmap="gray", vmin=0, vmax=255)
            style.finish_map(row[0], source.stem, gray.shape)
            for axes, name in zip(row[1:], METHODS, strict=True):
                edges = edge_map(gray, of_method(options, name))
                axes.imshow(edges, cmap="gray", vmin=0, vmax=255)
                style.finish_map(axes, name, edges.shape)
        return style.save(figure, path)

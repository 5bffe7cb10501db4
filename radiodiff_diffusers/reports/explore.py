"""What is in a data set: figures, tables and one page, from a single pass over its files.

    from radiodiff_diffusers.reports.explore import explore
    markdown, page = explore("RadioMapSeer")

Three kinds of folder are known: RadioMapSeer's layout (also what `radiodiff simulate` writes), the ICASSP-2025 indoor
set as it is downloaded, and pictures in one folder a class (spectrograms).
"""

from __future__ import annotations

import time
from pathlib import Path

from .document import Document, counted

KINDS = ("radiomapseer", "icassp2025", "spectrograms")


def explore(
    root: str | Path,
    output: str | Path | None = None,
    kind: str | None = None,
    workers: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> tuple[Path, Path]:
    """Writes the page; returns its Markdown and HTML files.

    Args:
        root (path): the data set.
        output (path, *optional*): the page's folder; by default `explore` inside the data set.
        kind (`str`, *optional*): one of `KINDS`; found out where left out.
        workers (`int`, *optional*): processes; all cores where left out.
        seed (`int`): picks the samples shown.
        progress (`bool`): a bar on stderr.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    kind = kind or find_kind(root)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of data set {kind!r}: use one of {', '.join(KINDS)}")
    folder = Path(output) if output else root / "explore"
    started = time.perf_counter()
    if kind == "radiomapseer":
        document = _radiomapseer(root, folder, workers, seed, progress)
    elif kind == "icassp2025":
        from .explore_icassp import describe

        document = describe(root, folder, workers, seed, progress)
    else:
        from .explore_spectrograms import describe

        document = describe(root, folder, workers, seed, progress)
    document.text(f"Made in {time.perf_counter() - started:,.1f} s.")
    return document.write(folder)


def find_kind(root: Path) -> str:
    """Which layout a folder has, by what it holds."""
    from .explore_icassp import find_samples

    if (root / "gain").is_dir() or (root / "png" / "buildings_complete").is_dir():
        return "radiomapseer"
    if (root / "Inputs").is_dir() or (root / "Radiation_Patterns").is_dir() or find_samples(root, first=True):
        return "icassp2025"
    pictures = ("*/*.png", "*/*.jpg", "*/*.jpeg", "*.png", "*.jpg")
    if any(next(root.glob(pattern), None) for pattern in pictures):
        return "spectrograms"
    raise ValueError(
        f"{root} holds no data set known here: neither gain/ (RadioMapSeer), nor Inputs/ (ICASSP 2025), nor "
        "pictures in "
        "one folder a class"
    )


def add_figures(document: Document, entries: list[tuple[str, str, Path | None, str]]) -> None:
    """(heading, caption, picture or None, why there is none)."""
    for heading, caption, picture, reason in entries:
        document.heading(heading)
        if picture is None:
            document.note("info", reason)
        else:
            document.figure(picture, caption)


def add_damaged(document: Document, damaged: list[str]) -> None:
    if not damaged:
        document.note("good", "Every file could be read.")
        return
    document.note(
        "bad", f"{counted(len(damaged), 'file')} could not be read: listed at the end, left out of all figures."
    )


def list_damaged(document: Document, damaged: list[str], limit: int = 200) -> None:
    if damaged:
        document.heading("Damaged files")
        document.items([f"`{text}`" for text in damaged[:limit]])
        if len(damaged) > limit:
            document.text(f"and {len(damaged) - limit:,} more")


# RadioMapSeer ------------------------------------------------------------------------------------------------------


def _radiomapseer(root: Path, folder: Path, workers: int | None, seed: int, progress: bool) -> Document:
    from . import radiomapseer_figures as figures
    from .radiomapseer_scan import read_tree, scan

    tree = read_tree(root)
    total = scan(tree, workers, progress)
    document = Document(f"Data set: {root.resolve().name}")
    document.heading("In short")
    transmitters = len(total.transmitters)
    document.text(
        f"**{len(tree.maps):,} maps, {transmitters:,} transmitters, {tree.num_gains:,} gain maps** of "
        f"{len(tree.gains)} simulations ({', '.join(sorted(tree.gains)) or 'none'}), "
        f"{tree.metres_per_pixel:g} m a pixel, {_shapes(total.shapes)}."
    )
    add_damaged(document, total.damaged)
    if tree.missing:
        count = counted(sum(map(len, tree.missing.values())), "file")
        document.note("warn", f"{count} missing that the others call for; see What is there.")
    if len(total.shapes) > 1:
        document.note("warn", f"Images of {len(total.shapes)} sizes: {_shapes(total.shapes)}.")

    def at(name: str) -> Path:
        return folder / "figures" / f"{name}.png"

    document.heading("What is there")
    document.figure(figures.tree_figure(tree, at("tree")), "Files by folder, and what is missing.")
    for name, files in tree.missing.items():
        shown = ", ".join(files[:10]) + (f" and {len(files) - 10:,} more" if len(files) > 10 else "")
        document.text(f"Missing in `{name}`: {shown}.")
    add_figures(
        document,
        [
            (
                "Transmitters",
                "Where transmitters stand, how densely, and how many the mask puts inside a wall.",
                figures.transmitter_figure(tree, total, at("transmitters")),
                "There is no antenna/ folder with positions.",
            ),
            (
                "Outlines",
                "The buildings' polygons: how many, how large, how many corners.",
                figures.polygon_figure(total, at("polygons")),
                "There is no polygon/buildings_complete folder.",
            ),
            (
                "Gain",
                "Histograms of the gain in dB, its mean by map, and how it falls with distance.",
                figures.gain_figure(total, at("gain")),
                "There are no gain maps.",
            ),
            (
                "Coverage and buildings",
                "How much ground is built over, how much of the rest hears the transmitter, and building sizes.",
                figures.coverage_figure(total, at("coverage")),
                "There are neither masks nor gain maps.",
            ),
            (
                "Samples",
                "Maps at random; buildings gray, the transmitter a cross.",
                figures.samples_figure(tree, at("samples"), seed),
                "There are no gain maps.",
            ),
            (
                "Pairs",
                "What a model is given, and what it has to say.",
                figures.pairs_figure(tree, at("pairs"), seed + 1),
                "There are no gain maps.",
            ),
            (
                "Simulations compared",
                "The same place and transmitter in two simulations, pixel by pixel.",
                figures.simulation_figure(tree, total, at("simulations")),
                "There is only one simulation without cars.",
            ),
            (
                "Cars",
                "How many cars there are, how large, and what they change in the gain.",
                figures.cars_figure(tree, total, at("cars")),
                "There are no cars.",
            ),
        ],
    )
    rows = figures.difference_rows(total)
    if rows:
        document.heading("Differences in numbers")
        document.table(
            ["simulation", "minus", "pixels", "bias [dB]", "RMSE [dB]", "median [dB]", "95 % below [dB]"],
            [[*row[:3], *(round(v, 2) for v in row[3:])] for row in rows],
        )
    list_damaged(document, total.damaged)
    return document


def _shapes(shapes) -> str:
    return (
        ", ".join(f"{count:,} of {width} x {height}" for (height, width), count in shapes.most_common(4))
        or "no images"
    )

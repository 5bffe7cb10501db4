"""The nine figures of a RadioMapSeer-like data set, from one scan of it (`radiomapseer_scan`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from . import style
from .parallel import read_gray
from .radiomapseer_scan import DISTANCE_BINS, DISTANCE_STEP, SCALE, MapResult, Tree, column

DB_OF_GRAY = SCALE.to_db(np.arange(256))
DB_PER_GRAY = (SCALE.db_at_255 - SCALE.db_at_0) / 255


def simulation_lines(names: list[str]) -> dict[str, dict[str, str]]:
    """Colour and dash by simulation; one with cars is the dashed line of its colour."""
    plain = sorted({name.removeprefix("cars") for name in names})
    return {
        name: {
            "color": style.COLOURS[plain.index(name.removeprefix("cars")) % len(style.COLOURS)],
            "linestyle": "--" if name.startswith("cars") else "-",
        }
        for name in names
    }


# 1: what is there --------------------------------------------------------------------------------------------------


def tree_figure(tree: Tree, path: Path) -> Path:
    """Files by folder, what is missing in orange."""
    counts = dict(sorted(tree.counts.items()))
    names = list(counts)
    missing = [len(tree.missing.get(name, ())) for name in names]
    size = (9.5, max(2.2, 0.34 * len(names) + 1.4))
    with style.drawing(size=size, title="Files by folder") as (figure, grid):
        axes = grid[0, 0]
        axes.barh(names, [counts[n] for n in names], color=style.BLUE, label="present")
        if any(missing):
            axes.barh(names, missing, left=[counts[n] for n in names], color=style.ORANGE, label="missing")
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
        for i, name in enumerate(names):
            text = f" {counts[name]:,}" + (f" ({missing[i]:,} missing)" if missing[i] else "")
            axes.text(counts[name] + missing[i], i, text, va="center", fontsize=9)
        axes.set_xlim(0, max(counts[n] + m for n, m in zip(names, missing, strict=True)) * 1.25)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        style.count_axis(axes, "x")
        axes.set_xlabel("files")
        return style.save(figure, path)


# 2: transmitters ---------------------------------------------------------------------------------------------------


def transmitter_figure(tree: Tree, total: MapResult, path: Path) -> Path | None:
    places = total.transmitters
    if not len(places):
        return None
    metres = tree.metres_per_pixel
    (height, width), _ = total.shapes.most_common(1)[0]
    with style.drawing(1, 3, (13.5, 4.3), f"Transmitters: {len(places):,} in {len(tree.maps):,} maps") as (
        figure,
        grid,
    ):
        shown = (
            places
            if len(places) <= 5000
            else places[np.random.default_rng(0).choice(len(places), 5000, replace=False)]
        )
        axes = grid[0, 0]
        dot = {"markersize": 2, "alpha": 0.5} if len(shown) > 1000 else {"markersize": 5}
        axes.plot(shown[:, 0] * metres, shown[:, 1] * metres, ".", color=style.BLUE, **dot)
        _place_axes(axes, width * metres, height * metres)
        axes.set_title("Positions" + ("" if len(shown) == len(places) else ", 5,000 of them"))
        axes = grid[0, 1]
        bins = 32
        counts, _, _ = np.histogram2d(
            places[:, 1], places[:, 0], bins=bins, range=[[-0.5, height - 0.5], [-0.5, width - 0.5]]
        )
        extent = (0, width * metres, height * metres, 0)
        per_map = counts / max(len(tree.maps), 1)
        image = axes.imshow(per_map, extent=extent, cmap=style.SPREAD_COLOURS, vmin=0, aspect="equal")
        cell = width * metres / bins
        figure.colorbar(
            image, ax=axes, label=f"transmitters a map in {cell:g} m x {cell:g} m", fraction=0.046, pad=0.02
        )
        axes.grid(False)
        style.label(axes, "Density", "x [m]", "y, downwards [m]")
        axes = grid[0, 2]
        depth = np.array(total.transmitter_depth) * metres
        inside = depth[depth > 0]
        if inside.size:
            axes.hist(inside, bins=np.arange(0, max(inside.max(initial=3), 3) + 1, 0.5), color=style.ORANGE)
            style.label(
                axes,
                f"Inside a wall of the mask: {len(inside):,} of {len(depth):,}",
                "depth in the wall [m]",
                "transmitters",
            )
            axes.set_xlim(left=0)
            style.count_axis(axes)
        elif depth.size:
            style.message(axes, f"none of the {len(depth):,} transmitters\nstands inside a wall of the mask")
        else:
            style.message(axes, "no building masks to compare with")
        return style.save(figure, path)


def _place_axes(axes: Any, width: float, height: float) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y, downwards [m]")


# 3: polygons -------------------------------------------------------------------------------------------------------


def polygon_figure(total: MapResult, path: Path) -> Path | None:
    if not total.vertices:
        return None
    areas, perimeters = np.array(total.areas), np.array(total.perimeters)
    with style.drawing(1, 4, (15, 3.8), f"Building outlines: {len(total.vertices):,} polygons") as (figure, grid):
        a, b, c, d = grid[0]
        polygons = column(total, "polygons")
        a.hist(polygons, bins=style.whole_bins(polygons), color=style.BLUE)
        style.label(a, "Polygons a map", "polygons", "maps")
        style.count_axis(a)
        _log_histogram(b, areas[areas > 0], "area [m²]", "polygons")
        b.set_title(f"Area, median {np.median(areas):,.0f} m²")
        corners = np.minimum(np.array(total.vertices), 25)
        c.hist(corners, bins=np.arange(2.5, 26.5), color=style.BLUE)
        style.label(c, "Corners", "corners (25: 25 or more)", "polygons")
        style.count_axis(c)
        _log_histogram(d, perimeters[perimeters > 0], "perimeter [m]", "polygons")
        d.set_title(f"Perimeter, median {np.median(perimeters):,.0f} m")
        return style.save(figure, path)


def _log_histogram(axes: Any, values: np.ndarray, x: str, y: str, colour: str = style.BLUE) -> None:
    if not len(values):
        style.message(axes, "nothing to show")
        return
    low, high = max(values.min(), 1e-3), max(values.max(), values.min() * 1.01)
    axes.hist(values, bins=np.geomspace(low, high * 1.0001, 31), color=colour)
    style.log_axis(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    style.count_axis(axes)


# 4: gain -----------------------------------------------------------------------------------------------------------


def gain_figure(total: MapResult, path: Path) -> Path | None:
    """Gain histograms in dB, mean gain a map, and gain over distance."""
    if not total.histograms:
        return None
    lines = simulation_lines(list(total.histograms))
    reference = next((n for n in ("DPM", *sorted(total.over_distance)) if n in total.over_distance), None)
    with style.drawing(1, 3, (14.5, 4.2), "Gain in the maps") as (figure, grid):
        a, b, c = grid[0]
        for name, counts in sorted(total.histograms.items()):
            above = counts.astype(float)
            above[0] = 0  # buildings and what is off the scale: named in the legend instead of drawn to the ceiling
            zero = counts[0] / counts.sum()
            text = f"{name} ({zero:.0%} at {DB_OF_GRAY[0]:.0f} dB)"
            a.step(DB_OF_GRAY[1:], above[1:] / above.sum() / DB_PER_GRAY, where="mid", label=text, **lines[name])
        a.axvline(SCALE.noise_floor_db, color=style.GRAY, linestyle=":", label="noise floor")
        style.label(a, "Gain of all pixels", "gain [dB]", "density [1/dB]")
        a.set_ylim(0, a.get_ylim()[1] * (1.05 + 0.09 * len(total.histograms)))
        a.legend(loc="upper left")
        for name, values in sorted(total.means.items()):
            known = np.array(values)[np.isfinite(values)]
            style.share_below(b, known, label=name, **lines[name])
        style.label(
            b, "Mean gain of each map", "mean gain where heard, outdoors [dB]", "share of the maps at or below"
        )
        style.percent_axis(b)
        b.legend(loc="upper left")
        if reference is None:
            style.message(c, "no transmitter positions,\nso no distances")
        else:
            _over_distance(figure, c, total.over_distance[reference], reference)
        return style.save(figure, path)


def _over_distance(figure: Any, axes: Any, counts: np.ndarray, name: str) -> None:
    """How gain falls: the density of gain at every distance, its median, and free space at 5.9 GHz to compare with."""
    heard = counts[:, 1:].astype(float)  # without gray 0, buildings
    pixels = heard.sum(1, keepdims=True)
    last = int(np.flatnonzero(pixels[:, 0] > 0).max(initial=1)) + 1
    distances = (np.arange(DISTANCE_BINS) + 0.5) * DISTANCE_STEP
    density = np.where(pixels > 0, heard / np.maximum(pixels, 1), np.nan)[:last] / DB_PER_GRAY
    extent = (0, last * DISTANCE_STEP, DB_OF_GRAY[1], DB_OF_GRAY[-1])
    image = axes.imshow(
        density.T, origin="lower", extent=extent, aspect="auto", cmap=style.SPREAD_COLOURS,
        vmax=np.nanquantile(density, 0.99), interpolation="nearest",
    )  # fmt: skip
    share = np.cumsum(heard[:last], 1) / np.maximum(pixels[:last], 1)
    median = DB_OF_GRAY[1:][np.argmax(share >= 0.5, axis=1)]
    known = pixels[:last, 0] > 0
    axes.plot(distances[:last][known], median[known], color="white", label="median")
    free = -47.85 - 20 * np.log10(np.maximum(distances[:last], 1.0))
    axes.plot(distances[:last], free, color=style.ORANGE, linestyle="--", label="free space, 5.9 GHz")
    figure.colorbar(image, ax=axes, label="density at that distance [1/dB]", pad=0.02)
    axes.grid(False)
    axes.set_ylim(DB_OF_GRAY[1], DB_OF_GRAY[-1])
    style.label(axes, f"Gain over distance, {name}", "distance from the transmitter [m]", "gain [dB]")
    legend = axes.legend(loc="upper right", frameon=False)
    for text in legend.get_texts():
        text.set_color("white")


# 5: coverage and sizes ---------------------------------------------------------------------------------------------


def coverage_figure(total: MapResult, path: Path) -> Path | None:
    shares = column(total, "building_share")
    if not shares.size and not total.coverage:
        return None
    lines = simulation_lines(list(total.coverage))
    with style.drawing(1, 3, (14, 4), "Buildings and coverage") as (figure, grid):
        a, b, c = grid[0]
        if shares.size:
            a.hist(shares, bins=30, color=style.BLUE)
            style.label(a, f"Ground built over, mean {shares.mean():.0%}", "share of the map", "maps")
            style.percent_axis(a, "x")
            style.count_axis(a)
        else:
            style.message(a, "no building masks")
        for name, values in sorted(total.coverage.items()):
            style.share_below(b, np.array(values), label=f"{name}, mean {np.mean(values):.0%}", **lines[name])
        style.label(
            b,
            f"Outdoors above {SCALE.noise_floor_db:.0f} dB",
            "share of the open ground",
            "share of the maps at or below",
        )
        style.percent_axis(b, "x")
        style.percent_axis(b, "y")
        b.set_xlim(0, 1)
        if total.coverage:
            b.legend(loc="upper left")
        areas = np.array(total.areas)
        _log_histogram(c, areas[areas > 0], "building area [m²]", "buildings")
        if areas.size:
            c.set_title(f"Building sizes, median {np.median(areas):,.0f} m²")
        return style.save(figure, path)


# 6 and 7: pictures -------------------------------------------------------------------------------------------------


def _plane(path: Path) -> np.ndarray | None:
    try:
        return read_gray(path) if path.is_file() else None
    except OSError:
        return None


def _place(tree: Tree, m: int, t: int, height: int) -> tuple[float, float] | None:
    try:
        x, y = json.loads((tree.root / "antenna" / f"{m}.json").read_text())[t]
        return float(x), height - 1 - float(y)
    except (OSError, ValueError, IndexError, TypeError):
        return None


def samples_figure(tree: Tree, path: Path, seed: int = 0, rows: int = 3) -> Path | None:
    """A few maps at random: the ground on top, one gain map of each simulation below it."""
    rng = np.random.default_rng(seed)
    names = sorted(tree.gains)[:4]
    maps = [m for m in tree.maps if any(m in tree.gains[name] for name in names)]
    if not maps:
        return None
    chosen = sorted(rng.choice(maps, min(rows, len(maps)), replace=False).tolist())
    columns = len(names) + 1
    with style.drawing(len(chosen), columns, (3.1 * columns + 0.8, 3.05 * len(chosen) + 0.6), "Samples") as (
        figure,
        grid,
    ):
        image = None
        for i, m in enumerate(chosen):
            buildings = _plane(tree.root / "png" / "buildings_complete" / f"{m}.png")
            common = set.intersection(*(set(tree.gains[n].get(m, ())) for n in names)) or set(
                tree.gains[names[0]].get(m, ())
            )
            t = int(rng.choice(sorted(common))) if common else 0
            height = buildings.shape[0] if buildings is not None else 256
            place = _place(tree, m, t, height)
            _ground(tree, grid[i, 0], m, buildings, place)
            for axes, name in zip(grid[i, 1:], names, strict=True):
                plane = _plane(tree.root / "gain" / name / f"{m}_{t}.png")
                if plane is None:
                    style.message(axes, f"{name}: {m}_{t}.png\nis missing or damaged")
                    continue
                image = _gain(axes, plane, f"{name} {m}_{t}", place, tree.metres_per_pixel)
        if image is not None:
            figure.colorbar(image, ax=grid, label="gain [dB]", shrink=0.7, aspect=40, pad=0.01)
        return style.save(figure, path)


def _ground(tree: Tree, axes: Any, m: int, buildings: np.ndarray | None, place: tuple[float, float] | None) -> None:
    """Buildings dark, roads pale, cars orange, the transmitter a cross."""
    if buildings is None:
        style.message(axes, f"map {m}: no building mask")
        return
    ground = np.full((*buildings.shape, 3), 0.96)
    roads = _plane(tree.root / "png" / "roads" / f"{m}.png")
    cars = _plane(tree.root / "png" / "cars" / f"{m}.png")
    for plane, colour in ((roads, (0.80, 0.86, 0.90)), (buildings, (0.35, 0.38, 0.42)), (cars, (0.835, 0.369, 0.0))):
        if plane is not None and plane.shape == buildings.shape:
            ground[plane > 127] = colour
    axes.imshow(ground)
    style.finish_map(axes, f"map {m}", buildings.shape, place)


def _gain(axes: Any, plane: np.ndarray, title: str, place: Any, metres: float) -> Any:
    return style.gain_map(
        axes,
        SCALE.to_db(plane),
        SCALE,
        title,
        buildings=plane == 0,
        transmitter=place,
        metres_per_pixel=metres,
        colorbar=False,
    )


def pairs_figure(tree: Tree, path: Path, seed: int = 1, count: int = 4) -> Path | None:
    """What a model is given beside what it must say: one map, several transmitters."""
    rng = np.random.default_rng(seed)
    name = "DPM" if "DPM" in tree.gains else next(iter(sorted(tree.gains)), None)
    if name is None:
        return None
    m = int(rng.choice(sorted(tree.gains[name])))
    transmitters = tree.gains[name][m]
    chosen = sorted(rng.choice(transmitters, min(count, len(transmitters)), replace=False).tolist())
    buildings = _plane(tree.root / "png" / "buildings_complete" / f"{m}.png")
    size = (3.1 * len(chosen) + 0.9, 6.3)
    with style.drawing(2, len(chosen), size, f"Pairs: condition above, {name} target below") as (figure, grid):
        image = None
        for j, t in enumerate(chosen):
            plane = _plane(tree.root / "gain" / name / f"{m}_{t}.png")
            height = plane.shape[0] if plane is not None else 256
            place = _place(tree, m, t, height)
            _ground(tree, grid[0, j], m, buildings, place)
            if buildings is not None:
                grid[0, j].set_title(f"map {m}, transmitter {t}")
            if plane is None:
                style.message(grid[1, j], "damaged")
            else:
                image = _gain(grid[1, j], plane, "", place, tree.metres_per_pixel)
        if image is not None:
            figure.colorbar(image, ax=grid, label="gain [dB]", shrink=0.7, aspect=35, pad=0.01)
        return style.save(figure, path)


# 8: simulations pixel by pixel -------------------------------------------------------------------------------------


def difference_rows(total: MapResult) -> list[tuple[str, str, int, float, float, float, float]]:
    """Simulation, reference, pixels, then bias, RMSE, median and 95 % quantile of the difference's size, in dB."""
    rows = []
    levels = np.arange(-255, 256) * DB_PER_GRAY
    for (name, reference), counts in sorted(total.differences.items()):
        pixels = int(counts.sum())
        if not pixels:
            continue
        order = np.argsort(np.abs(levels), kind="stable")
        cumulative = np.cumsum(counts[order]) / pixels
        absolute = np.abs(levels)[order]
        rows.append(
            (
                name,
                reference,
                pixels,
                float((counts * levels).sum() / pixels),
                float(np.sqrt((counts * levels**2).sum() / pixels)),
                float(absolute[np.searchsorted(cumulative, 0.5)]),
                float(absolute[np.searchsorted(cumulative, 0.95)]),
            )
        )
    return rows


def simulation_figure(tree: Tree, total: MapResult, path: Path) -> Path | None:
    """Histograms of the difference in dB, and for each pair of simulations one map where they differ most visibly."""
    rows = [row for row in difference_rows(total) if not row[0].startswith("cars")]
    if not rows:
        return None
    rows = rows[:3]
    with style.drawing(1, 1 + len(rows), (5.2 + 3.5 * len(rows), 4.2), "Simulations compared pixel by pixel") as (
        figure,
        grid,
    ):
        _difference_histograms(grid[0, 0], total, rows)
        for axes, (name, reference, *_) in zip(grid[0, 1:], rows, strict=True):
            found = _difference_map(tree, name, reference)
            if found is None:
                style.message(axes, "no map of both can be read")
                continue
            m, t, error = found
            style.error_map(
                axes, error, style.error_limit(error), f"{name} minus {reference}, {m}_{t}", tree.metres_per_pixel
            )
            axes.images[0].colorbar.set_label("difference [dB]")
        return style.save(figure, path)


def _difference_histograms(axes: Any, total: MapResult, rows: list) -> None:
    levels = np.arange(-255, 256) * DB_PER_GRAY
    for i, (name, reference, pixels, bias, root, *_) in enumerate(rows):
        density = total.differences[(name, reference)] / pixels / DB_PER_GRAY
        text = f"{name} minus {reference}\nbias {bias:+.1f} dB, RMSE {root:.1f} dB"
        edges = np.append(levels, levels[-1] + DB_PER_GRAY) - DB_PER_GRAY / 2
        axes.stairs(np.where(density > 0, density, np.nan), edges, color=style.COLOURS[i], linewidth=1.6, label=text)
    axes.set_yscale("log")
    axes.set_xlim(-60, 60)
    axes.axvline(0, color=style.GRAY, linewidth=0.8)
    style.label(axes, "All pixels where either hears", "difference [dB]", "density [1/dB]")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, high * 1e-6), high * (8 ** len(rows)))
    axes.legend(loc="upper left")


def _difference_map(tree: Tree, name: str, reference: str) -> tuple[int, int, np.ndarray] | None:
    """Among a few maps the one with the largest RMSE, as (map, transmitter, dB)."""
    candidates = []
    both = [(m, t) for m, found in tree.gains[name].items() for t in found if t in tree.gains[reference].get(m, ())]
    rng = np.random.default_rng(0)
    for i in rng.choice(len(both), min(8, len(both)), replace=False) if both else ():
        m, t = both[i]
        a, b = (_plane(tree.root / "gain" / which / f"{m}_{t}.png") for which in (name, reference))
        if a is not None and b is not None and a.shape == b.shape:
            error = (a.astype(np.float32) - b) * DB_PER_GRAY
            candidates.append((float(np.square(error).mean()), m, t, error))
    return max(candidates, key=lambda c: c[0])[1:] if candidates else None


# 9: cars -----------------------------------------------------------------------------------------------------------


def cars_figure(tree: Tree, total: MapResult, path: Path) -> Path | None:
    rows = [
        row for row in difference_rows(total) if row[0].startswith("cars") and row[1] == row[0].removeprefix("cars")
    ]
    counts = column(total, "cars")
    if not rows and not counts.size:
        return None
    with style.drawing(1, 4, (16, 4), "Cars") as (figure, grid):
        a, b, c, d = grid[0]
        if counts.size:
            a.hist(counts, bins=style.whole_bins(counts), color=style.ORANGE)
            style.label(a, f"Cars a map, mean {counts.mean():.0f}", "cars (connected parts of the mask)", "maps")
            style.count_axis(a)
            areas = np.array(total.car_areas)
            b.hist(areas, bins=np.arange(0.5, max(areas.max(initial=20), 20) + 1), color=style.ORANGE)
            style.label(b, "Size of a car in the mask", "area [m²]", "cars")
            style.count_axis(b)
        else:
            style.message(a, "no car masks")
            style.message(b, "no car masks")
        if not rows:
            style.message(c, "no pair of simulations\nwith and without cars")
            style.message(d, "")
            return style.save(figure, path)
        _difference_histograms(c, total, rows[:2])
        c.set_title("What cars change")
        found = _difference_map(tree, rows[0][0], rows[0][1])
        if found is None:
            style.message(d, "no map of both can be read")
        else:
            m, t, error = found
            style.error_map(
                d, error, style.error_limit(error), f"{rows[0][0]} minus {rows[0][1]}, {m}_{t}", tree.metres_per_pixel
            )
            d.images[0].colorbar.set_label("change [dB]")
        return style.save(figure, path)

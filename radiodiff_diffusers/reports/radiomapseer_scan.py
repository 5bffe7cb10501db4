"""One pass over a RadioMapSeer-like folder: every number its nine figures need, each image read once.

A map is the unit of work: its building mask, cars, outlines and transmitters, and all its gain maps, so that
simulations of the same place are compared pixel by pixel while both are in memory. What is kept is small: histograms
of gray levels, of differences, of gain over distance, and a row of numbers a map.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..scene import GainScale
from .parallel import read_gray, run_parallel

SCALE = GainScale.RADIOMAPSEER
NOISE_FLOOR_GRAY = 51.5  # gray 0.2, -127 dB: what is above it is heard
REFERENCE = "DPM"
DISTANCE_BINS, DISTANCE_STEP = 90, 4  # metres
DAMAGED_LISTED = 200


@dataclass
class Tree:
    """Which files there are: gain maps by simulation and map, layers by map, everything counted by folder."""

    root: Path
    gains: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    layers: dict[str, set[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    missing: dict[str, list[str]] = field(default_factory=dict)
    metres_per_pixel: float = 1.0

    @property
    def maps(self) -> list[int]:
        return sorted(set().union(*self.layers.values(), *self.gains.values()))

    @property
    def num_gains(self) -> int:
        return sum(len(transmitters) for maps in self.gains.values() for transmitters in maps.values())


def read_tree(root: str | Path) -> Tree:
    """Lists the folder without opening an image, and what each simulation lacks."""
    root = Path(root)
    tree = Tree(root)
    for folder, below, names in os.walk(root):
        relative = Path(folder).relative_to(root).as_posix()
        if "edges.json" in names:  # edge maps made of the set, no part of it
            below.clear()
            continue
        if names and not relative.startswith((".", "explore")):
            tree.counts[relative] = len(names)
        stems = [Path(name).stem for name in names if name.endswith((".png", ".json"))]
        if relative.startswith("gain/"):
            maps = defaultdict(list)
            for stem in stems:
                numbers = stem.split("_")
                if len(numbers) == 2 and all(number.isdigit() for number in numbers):
                    maps[int(numbers[0])].append(int(numbers[1]))
            if maps:
                tree.gains[relative.removeprefix("gain/")] = {m: sorted(maps[m]) for m in sorted(maps)}
        elif relative in {"antenna", "png/cars", "png/roads"} or "/buildings_" in relative:
            tree.layers[relative] = {int(stem) for stem in stems if stem.isdigit()}
    if not tree.gains and "png/buildings_complete" not in tree.layers:
        raise ValueError(
            f"{root} is not laid out like RadioMapSeer: no gain/<simulation>/<map>_<transmitter>.png in it"
        )
    tree.missing = _missing(tree)
    manifest = root / "manifest.json"
    if manifest.is_file():
        tree.metres_per_pixel = _find_number(_read_json(manifest), "metres_per_pixel") or 1.0
    return tree


def _missing(tree: Tree) -> dict[str, list[str]]:
    """By folder: what its usual number of transmitters a map, and the maps of the other folders, call for."""
    missing = {}
    maps = set(tree.maps)
    for simulation, found in tree.gains.items():
        usual = Counter(max(transmitters) + 1 for transmitters in found.values()).most_common(1)[0][0]
        lacking = [f"{m}_{t}.png" for m in sorted(maps) for t in range(usual) if t not in set(found.get(m, ()))]
        if lacking:
            missing[f"gain/{simulation}"] = lacking
    for layer in ("png/buildings_complete", "antenna"):
        if layer in tree.layers and maps - tree.layers[layer]:
            suffix = ".json" if layer == "antenna" else ".png"
            missing[layer] = [f"{m}{suffix}" for m in sorted(maps - tree.layers[layer])]
    return missing


# One map -----------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    root: Path
    map_id: int
    gains: dict[str, list[int]]
    metres_per_pixel: float


@dataclass
class MapResult:
    """What one map adds; `row` goes to the table of maps, the rest is summed."""

    map_id: int
    row: dict[str, float] = field(default_factory=dict)
    transmitters: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    transmitter_depth: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    vertices: list[int] = field(default_factory=list)
    perimeters: list[float] = field(default_factory=list)
    car_areas: list[float] = field(default_factory=list)
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    means: dict[str, list[float]] = field(default_factory=dict)
    coverage: dict[str, list[float]] = field(default_factory=dict)
    over_distance: dict[str, np.ndarray] = field(default_factory=dict)
    differences: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    shapes: Counter = field(default_factory=Counter)
    images: int = 0
    damaged: list[str] = field(default_factory=list)


def scan_map(job: Job) -> MapResult:
    """Reads everything of one map. A file that cannot be read is listed and the rest goes on."""
    result = MapResult(job.map_id)
    buildings = _layer(job, result, "png/buildings_complete")
    cars = _layer(job, result, "png/cars")
    area = job.metres_per_pixel**2
    if buildings is not None:
        result.row["building_share"] = float((buildings > 127).mean())
        result.shapes[buildings.shape] += 1
    if cars is not None:
        result.row["car_share"] = float((cars > 127).mean())
        result.car_areas = _component_sizes(cars, area)
        result.row["cars"] = len(result.car_areas)
    _read_outlines(job, result, buildings, area)
    _read_transmitters(job, result, buildings)
    _read_gains(job, result, buildings)
    return result


def _layer(job: Job, result: MapResult, folder: str) -> np.ndarray | None:
    path = job.root / folder / f"{job.map_id}.png"
    return _open(path, job, result) if path.is_file() else None


def _open(path: Path, job: Job, result: MapResult) -> np.ndarray | None:
    try:
        plane = read_gray(path)
    except OSError as error:
        result.damaged.append(str(error).removeprefix(f"{job.root}{os.sep}"))
        return None
    result.images += 1
    return plane


def _read_outlines(job: Job, result: MapResult, buildings: np.ndarray | None, area: float) -> None:
    """Sizes from the polygons where there are any, else from the mask's connected parts."""
    path = job.root / "polygon" / "buildings_complete" / f"{job.map_id}.json"
    if path.is_file():
        try:
            rings = [np.asarray(ring, float) for ring in _read_json(path)]
            rings = [ring for ring in rings if ring.ndim == 2 and ring.shape[1] == 2 and len(ring) >= 3]
        except (ValueError, TypeError) as error:
            result.damaged.append(f"polygon/buildings_complete/{path.name}: {error}")
            return
        for ring in rings:
            closed = np.vstack([ring, ring[:1]])
            x, y = closed.T
            result.areas.append(abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2 * area)
            steps = np.hypot(np.diff(x), np.diff(y))
            result.perimeters.append(float(steps.sum()) * job.metres_per_pixel)
            result.vertices.append(int((steps > 0).sum()))
        result.row["polygons"] = len(rings)
    elif buildings is not None:
        result.areas = _component_sizes(buildings, area)


def _component_sizes(mask: np.ndarray, area: float) -> list[float]:
    import cv2

    _, _, statistics, _ = cv2.connectedComponentsWithStats((mask > 127).astype(np.uint8), connectivity=4)
    return [float(size) * area for size in statistics[1:, cv2.CC_STAT_AREA]]


def _read_transmitters(job: Job, result: MapResult, buildings: np.ndarray | None) -> None:
    """Positions as (x, y) pixels, y down, and how far inside a wall of the mask each stands."""
    path = job.root / "antenna" / f"{job.map_id}.json"
    height = buildings.shape[0] if buildings is not None else 256
    if not path.is_file():
        return
    try:
        places = np.asarray(_read_json(path), float).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        result.damaged.append(f"antenna/{path.name}: {error}")
        return
    places[:, 1] = height - 1 - places[:, 1]
    result.transmitters = places
    result.row["transmitters"] = len(places)
    if buildings is not None:
        import cv2

        depth = cv2.distanceTransform((buildings > 127).astype(np.uint8), cv2.DIST_L2, 3)
        inside = np.clip(np.rint(places).astype(int), 0, np.array(buildings.shape[::-1]) - 1)
        result.transmitter_depth = depth[inside[:, 1], inside[:, 0]].astype(float).tolist()


def _read_gains(job: Job, result: MapResult, buildings: np.ndarray | None) -> None:
    outside = None if buildings is None else (buildings <= 127)
    by_transmitter: dict[int, list[str]] = defaultdict(list)
    for simulation, transmitters in job.gains.items():
        for t in transmitters:
            by_transmitter[t].append(simulation)
    for t in sorted(by_transmitter):
        planes = {}
        for simulation in by_transmitter[t]:
            plane = _open(job.root / "gain" / simulation / f"{job.map_id}_{t}.png", job, result)
            if plane is None:
                continue
            planes[simulation] = plane
            _add(result.histograms, simulation, np.bincount(plane.ravel(), minlength=256))
            open_air = plane[outside] if outside is not None and outside.shape == plane.shape else plane.ravel()
            heard = open_air > NOISE_FLOOR_GRAY
            result.coverage.setdefault(simulation, []).append(float(heard.mean()) if heard.size else 0.0)
            mean = float(SCALE.to_db(open_air[heard].mean())) if heard.any() else float("nan")
            result.means.setdefault(simulation, []).append(mean)
            result.shapes[plane.shape] += 1
            if t < len(result.transmitters):
                bins = _distance_bins(plane.shape, result.transmitters[t], job.metres_per_pixel)
                where = bins.ravel() * 256 + plane.ravel()
                counts = np.bincount(where, minlength=DISTANCE_BINS * 256).reshape(DISTANCE_BINS, 256)
                _add(result.over_distance, simulation, counts)
        _compare(result, planes)


def _compare(result: MapResult, planes: dict[str, np.ndarray]) -> None:
    """Differences in gray levels, -255..255, of each simulation against the first, and of cars against none."""
    names = list(planes)
    plain = sorted(name for name in names if not name.startswith("cars"))
    pairs = {(name, REFERENCE if REFERENCE in plain else plain[0]) for name in plain}
    pairs |= {(name, name.removeprefix("cars")) for name in names if name.startswith("cars")}
    for name, reference in pairs:
        if name == reference or reference not in planes or planes[name].shape != planes[reference].shape:
            continue
        # Buildings are zero in both and would hide everything in one tall bin.
        either = (planes[name] > 0) | (planes[reference] > 0)
        difference = planes[name][either].astype(np.int16) - planes[reference][either]
        _add(result.differences, (name, reference), np.bincount(difference + 255, minlength=511))


def _distance_bins(shape: tuple[int, int], place: np.ndarray, metres_per_pixel: float) -> np.ndarray:
    x = np.arange(shape[1], dtype=np.float32) - np.float32(place[0])
    y = np.arange(shape[0], dtype=np.float32) - np.float32(place[1])
    distance = np.sqrt(x[None] ** 2 + y[:, None] ** 2) * np.float32(metres_per_pixel / DISTANCE_STEP)
    return np.minimum(distance, DISTANCE_BINS - 1).astype(np.int32)


def _add(sums: dict, key: Any, counts: np.ndarray) -> None:
    sums[key] = sums[key] + counts if key in sums else counts.astype(np.int64)


# All maps ----------------------------------------------------------------------------------------------------------


def scan(tree: Tree, workers: int | None = None, progress: bool = True) -> MapResult:
    """All maps summed up; `row` holds a list of (map, row) under "maps"."""
    jobs, weights = [], []
    for m in tree.maps:
        gains = {simulation: maps[m] for simulation, maps in tree.gains.items() if m in maps}
        jobs.append(Job(tree.root, m, gains, tree.metres_per_pixel))
        weights.append(sum(map(len, gains.values())) + 1)
    total = MapResult(-1)
    rows, places = [], []
    for result in run_parallel(scan_map, jobs, workers, "reading maps", weights, progress):
        rows.append((result.map_id, result.row))
        places.append(result.transmitters)
        for name in ("transmitter_depth", "areas", "vertices", "perimeters", "car_areas", "damaged"):
            getattr(total, name).extend(getattr(result, name))
        for name in ("histograms", "over_distance", "differences"):
            for key, counts in getattr(result, name).items():
                _add(getattr(total, name), key, counts)
        for name in ("means", "coverage"):
            for key, values in getattr(result, name).items():
                getattr(total, name).setdefault(key, []).extend(values)
        total.shapes.update(result.shapes)
        total.images += result.images
    total.transmitters = np.concatenate(places) if places else total.transmitters
    total.row["maps"] = rows
    return total


def column(total: MapResult, name: str) -> np.ndarray:
    return np.array([row[name] for _, row in total.row["maps"] if name in row], float)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _find_number(data: Any, key: str) -> float | None:
    if isinstance(data, dict):
        if isinstance(data.get(key), (int, float)):
            return float(data[key])
        for value in data.values():
            if (found := _find_number(value, key)) is not None:
                return found
    return None

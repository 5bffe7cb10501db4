"""The ICASSP 2025 set's part of `check`: pairs, sizes, ranges, positions, and how the samples are distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .check import Job, Report
from .icassp2025_files import MOST_DISTANCE_ERROR, TASKS, ICASSP2025Folder, Name, distance_error, read_input
from .png import read_gray

LOSS_RANGE = (13, 160)  # dB: what the challenge's path loss lies in


def raw(report: Report) -> Iterator[Job]:
    """The set as it is downloaded."""
    folder = ICASSP2025Folder(report.root)
    seen: dict[str, Any] = {"sizes": Counter(), "loss": [], "reflectance": [], "transmittance": [], "swapped": [0, 0]}
    # What Building_Details says a building's maps measure, and what the inputs do.
    seen |= {"said": {}, "found": {}, "details": folder.details_path}
    report.facts["_seen"] = seen
    everything: set[Name] = set()
    for task in TASKS:
        if not (report.root / "Inputs" / f"Task_{task}_ICASSP").is_dir():
            report.notes.append(f"task {task} is not here")
            continue
        names = folder.names(task)
        outputs = (
            set(folder.names(task, "Outputs")) if (report.root / f"Outputs/Task_{task}_ICASSP").is_dir() else set()
        )
        if not outputs:
            report.problems.append(f"Outputs/Task_{task}_ICASSP/: missing folder")
        report.problems += [f"Outputs/Task_{task}_ICASSP/{n}.png: missing" for n in names if n not in outputs]
        report.problems += [f"Inputs/Task_{task}_ICASSP/{n}.png: missing" for n in sorted(outputs - set(names))]
        report.facts[f"task {task}"] = _distribution(names)
        for name in names:
            yield lambda n=name, t=task, has=name in outputs: _check_raw(folder, n, t, has, seen)
        everything |= set(names)
    for antenna in sorted({n.antenna for n in everything}):
        yield lambda a=antenna: folder.pattern(a) is None or None
    if not (report.root / "Building_Details").is_dir():
        report.notes.append("Building_Details/ is not here: sizes are compared with each other alone")
        return
    for building in sorted({n.building for n in everything}):
        if folder.details_path(building).is_file():
            yield lambda b=building: _note_details(folder, b, seen)
        else:
            report.problems.append(f"Building_Details/B{building}_Details.csv: missing")


def arranged(report: Report) -> Iterator[Job]:
    """Either arranged layout."""
    from .icassp2025_arrange import FOLDERS, arranged_layout, load_manifest

    layout = arranged_layout(report.root)
    folders = FOLDERS[layout]
    seen: dict[str, Any] = {"sizes": Counter(), "loss": [], "reflectance": [], "transmittance": []}
    report.facts["_seen"] = seen
    report.facts["layout"] = layout
    known = load_manifest(report.root)["samples"]
    buildings: dict[str, set[int]] = {}
    for split in ("train", "val", "test"):
        root = report.root / split
        if not root.is_dir():
            report.notes.append(f"{split}/ is not here")
            continue
        found = {f: {n for n in (Name.parse(p.stem) for p in (root / f).glob("*.png")) if n} for f in folders}
        names = set.union(*found.values())
        for kind, present in found.items():
            report.problems += [f"{split}/{kind}/{n}.png: missing" for n in sorted(names - present)]
        report.facts[split] = _distribution(sorted(names))
        buildings[split] = {n.building for n in names}
        if known:
            report.problems += [
                f"{split}/{folders[0]}/{n}.png: not in the manifest" for n in sorted(names) if str(n) not in known
            ]
        for name in sorted(set.intersection(*found.values())):
            yield lambda r=root, n=name: _check_arranged(r, n, folders, seen)
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = buildings.get(first, set()) & buildings.get(second, set())
        if shared:
            report.notes.append(
                f"{len(shared)} buildings are in {first} and in {second}: scores there say little about new buildings"
            )


def finish(report: Report) -> None:
    """Turn what the checks saw into facts."""
    seen = report.facts.pop("_seen")
    if seen["sizes"]:
        sizes = sorted(seen["sizes"])
        common = f" (most: {seen['sizes'].most_common(1)[0][0]})" if len(sizes) > 1 else ""
        report.facts["sizes"] = f"{len(sizes)}: {sizes[0]} ... {sizes[-1]}{common}" if len(sizes) > 1 else sizes[0]
    report.problems += _wrong_sizes(seen)
    for key in ("reflectance", "transmittance", "loss"):
        if seen[key]:
            low, high = min(v[0] for v in seen[key]), max(v[1] for v in seen[key])
            unit = "path loss" if key == "loss" else key
            report.facts[unit] = f"{low:g} to {high:g} dB, mean {np.mean([v[2] for v in seen[key]]):.1f}"
    straight, swapped = seen.get("swapped", (0, 0))
    if swapped:
        report.notes.append(
            f"positions give row and column, not column and row, in {swapped} of {straight + swapped} samples"
        )


def _wrong_sizes(seen: dict[str, Any]) -> list[str]:
    """Inputs of another size than their building's, by its details or else by most of them. Where all agree with each
    other, it is the details that are wrong.
    """
    lines = []
    for building, found in sorted(seen.get("found", {}).items()):
        said, most = seen["said"].get(building), max(found, key=lambda size: len(found[size]))
        if len(found) == 1:
            if said and said != most:
                lines.append(f"{seen['details'](building)}: {said} pixels, all {len(found[most])} inputs have {most}")
            continue
        expected = f"Building_Details says {said}" if said else f"most of building {building} have {most}"
        for size in sorted(set(found) - {said or most}):
            lines += [f"{path}: {size} pixels, {expected}" for path in sorted(found[size])]
    return lines


def _note_details(folder: ICASSP2025Folder, building: int, seen: dict[str, Any]) -> None:
    height, width = folder.size(building)
    seen["said"][building] = f"{width} x {height}"


def _check_raw(folder: ICASSP2025Folder, name: Name, task: int, has_output: bool, seen: dict[str, Any]) -> str | None:
    lines: list[str] = []
    shape = None
    with _noting(lines):
        reflectance, transmittance, distance = read_input(folder.input_path(name, task))
        shape = distance.shape
        size = f"{shape[1]} x {shape[0]}"
        seen["sizes"][size] += 1
        seen["found"].setdefault(name.building, {}).setdefault(size, []).append(folder.input_path(name, task))
        _note_range(seen, "reflectance", reflectance)
        _note_range(seen, "transmittance", transmittance)
        _check_position(folder, name, distance, seen)
    if has_output:
        with _noting(lines):
            _check_loss(folder.output_path(name, task), shape, "its input", seen)
    return "\n".join(lines) or None


def _check_arranged(root: Path, name: Name, folders: tuple[str, ...], seen: dict[str, Any]) -> str | None:
    lines: list[str] = []
    shape = None
    with _noting(lines):
        reflectance, transmittance, _ = read_input(root / folders[0] / f"{name}.png")
        shape = reflectance.shape
        seen["sizes"][f"{shape[1]} x {shape[0]}"] += 1
        _note_range(seen, "reflectance", reflectance)
        _note_range(seen, "transmittance", transmittance)
    for kind in folders[1:-1]:
        with _noting(lines):
            _read_of_shape(root / kind / f"{name}.png", shape, f"{folders[0]}/")
    with _noting(lines):
        _check_loss(root / folders[-1] / f"{name}.png", shape, f"{folders[0]}/", seen)
    return "\n".join(lines) or None


@contextmanager
def _noting(lines: list[str]) -> Iterator[None]:
    """What is wrong becomes a line, and the next file is looked at all the same."""
    try:
        yield
    except ValueError as error:
        lines.append(" ".join(str(error).split()))


def _check_position(folder: ICASSP2025Folder, name: Name, distance: np.ndarray, seen: dict[str, Any]) -> None:
    height, width = distance.shape
    x, y, _ = folder.position(name)
    fits = [
        0 <= a <= width - 1 and 0 <= b <= height - 1 and distance_error(distance, (a, b)) <= MOST_DISTANCE_ERROR
        for a, b in ((x, y), (y, x))
    ]
    if not any(fits):
        where = f"{folder.positions_path(name)}: row {name.sample}"
        raise ValueError(f"{where}: ({x:g}, {y:g}) does not fit the distance channel of {name}")
    seen["swapped"][0 if fits[0] else 1] += 1


def _check_loss(path: Path, shape: tuple[int, int] | None, other: str, seen: dict[str, Any]) -> None:
    loss = _read_of_shape(path, shape, other)
    _note_range(seen, "loss", loss)
    low, high = int(loss.min()), int(loss.max())
    if low < LOSS_RANGE[0] or high > LOSS_RANGE[1]:
        raise ValueError(f"{path}: path loss of {low} to {high} dB, expected {LOSS_RANGE[0]} to {LOSS_RANGE[1]}")


def _read_of_shape(path: Path, shape: tuple[int, int] | None, other: str) -> np.ndarray:
    plane = read_gray(path)
    if shape is not None and plane.shape != shape:
        raise ValueError(f"{path}: {plane.shape[1]} x {plane.shape[0]} pixels, {other} has {shape[1]} x {shape[0]}")
    return plane


def _note_range(seen: dict[str, Any], key: str, plane: np.ndarray) -> None:
    seen[key].append((float(plane.min()), float(plane.max()), float(plane.mean())))


def _distribution(names: list[Name]) -> str:
    buildings = Counter(n.building for n in names)
    span = f"{min(buildings.values())} to {max(buildings.values())}" if buildings else "no"
    return (
        f"{len(names)} samples, {len(buildings)} buildings ({span} samples each), "
        f"antennas {dict(sorted(Counter(n.antenna for n in names).items()))}, "
        f"frequencies {dict(sorted(Counter(n.frequency for n in names).items()))}"
    )

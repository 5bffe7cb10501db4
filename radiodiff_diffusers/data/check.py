"""Is a data set whole? Every missing, damaged or odd file by name, all of them at once, and what the set is made of.

report = check("RadioMapSeer")
print(report.text())
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .kinds import KINDS, find_kind

# Reads one file, or those of one sample, and says what is wrong, if anything: one line or several.
Job = Callable[[], str | None]


@dataclass
class Report:
    """What a check found.

    `problems` are lines that begin with the file; `facts` is a table of numbers; `notes` is what is odd but not wrong.
    """

    root: Path
    kind: str
    files: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """One line a problem, then the facts, then the verdict."""
        lines = list(self.problems)
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        lines += [f"note: {note}" for note in self.notes]
        count = len(self.problems)
        verdict = "all is well" if not count else f"{count} problem{'s' if count > 1 else ''}"
        lines.append(f"{self.root} ({self.kind}): {self.files:,} files checked, {verdict}")
        return "\n".join(lines)


def check(
    root: str | Path,
    kind: str | None = None,
    *,
    quick: bool = False,
    complete: bool = False,
    workers: int | None = None,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> Report:
    """Look at every file of a data set.

    Args:
        root: the folder.
        kind: one of `KINDS`; found out where left out.
        quick: names alone, without opening pictures.
        complete: RadioMapSeer: expect all 701 maps, and not only those that any file is there of.
        workers: threads; one a core where left out.
        progress: wraps the checked files and their number, for a progress bar.
    """
    from concurrent.futures import ThreadPoolExecutor

    root = Path(root)
    kind = kind or find_kind(root)
    if kind not in KINDS:
        raise ValueError(f"unknown kind of data set {kind!r}: use one of {', '.join(KINDS)}")
    report = Report(root, kind)
    if kind == "radiomapseer":
        jobs = _radiomapseer(report, complete)
    elif kind in ("icassp2025", "arranged"):
        from . import icassp2025_check

        jobs = icassp2025_check.raw(report) if kind == "icassp2025" else icassp2025_check.arranged(report)
    elif kind == "parquet":
        jobs = _parquet(report)
    else:
        jobs = _spectrograms(report)
    jobs = list(jobs)
    report.files = len(jobs)
    if not quick:
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            done = pool.map(run_job, jobs)
            for found in progress(done, len(jobs)) if progress else done:
                report.problems += (found or "").splitlines()
    if kind in ("icassp2025", "arranged"):
        icassp2025_check.finish(report)
    report.problems = list(dict.fromkeys(report.problems))  # several samples may lack the same file
    return report


def run_job(job: Job) -> str | None:
    try:
        return job()
    except ValueError as error:
        return " ".join(str(error).split())


# RadioMapSeer --------------------------------------------------------------------------------------------------------


def _radiomapseer(report: Report, complete: bool) -> Iterator[Job]:
    from .radiomapseer_files import RadioMapSeerFolder, numbered_files, numbered_pairs
    from .splits import LAST_MAP

    folder = RadioMapSeerFolder(report.root)
    root = report.root
    gains = {}
    if (root / "gain").is_dir():
        gains = {f"gain/{p.name}": numbered_pairs(p) for p in sorted((root / "gain").iterdir()) if p.is_dir()}
    masks = {
        path.relative_to(root).as_posix(): numbered_files(path, ".png")
        for pattern in ("png/buildings_*", "png/buildings_missing*/*", "png/cars", "png/roads")
        for path in sorted(root.glob(pattern))
        if path.is_dir() and not any(p.is_dir() for p in path.iterdir())
    }
    polygons = {
        path.relative_to(root).as_posix(): numbered_files(path, ".json")
        for pattern in ("polygon/*", "polygon/buildings_missing*/*")
        for path in sorted(root.glob(pattern))
        if path.is_dir() and not any(p.is_dir() for p in path.iterdir())
    }
    antennas = numbered_files(root / "antenna", ".json")
    dots = numbered_pairs(root / "png/antennas") if (root / "png/antennas").is_dir() else {}
    maps = {k for found in (*gains.values(), dots, antennas, *masks.values(), *polygons.values()) for k in found}
    if complete:
        maps |= set(range(LAST_MAP + 1))
    for name in ("gain", "png/buildings_complete", "antenna"):
        if not (root / name).is_dir() and not (name == "antenna" and dots):
            report.problems.append(f"{name}/: missing folder")
    counts = {}
    for map_id in sorted(maps):
        counts[map_id] = _count_transmitters(folder, map_id, gains, dots, report)
    for name, found in (*masks.items(), *polygons.items(), *([("antenna", antennas)] if antennas else [])):
        suffix = "png" if name.startswith("png/") else "json"
        report.problems += [f"{name}/{k}.{suffix}: missing" for k in sorted(maps - set(found))]
    for name, found in (*gains.items(), *([("png/antennas", dots)] if dots else [])):
        for map_id in sorted(maps):
            # IRT4 was simulated for the first two transmitters alone
            wanted = min(2, counts[map_id]) if "IRT4" in name else counts[map_id]
            lacking = set(range(wanted)) - set(found.get(map_id, ()))
            report.problems += [f"{name}/{map_id}_{t}.png: missing" for t in sorted(lacking)]
    real = "" if folder.manifest() else f" (RadioMapSeer has {LAST_MAP + 1})"
    report.facts["maps"] = f"{len(maps)}{real}"
    report.facts["radio maps"] = ", ".join(
        f"{n.removeprefix('gain/')} {sum(map(len, f.values()))}" for n, f in gains.items()
    )

    sizes = {k: _size_of(folder, k) for k in sorted(maps)}
    for name, found in masks.items():
        for map_id in found:
            yield lambda name=name, k=map_id: _check_picture(root / name / f"{k}.png", name, sizes[k])
    for name, found in (*gains.items(), ("png/antennas", dots)):
        for map_id, transmitters in found.items():
            for tx_id in transmitters:
                path = root / name / f"{map_id}_{tx_id}.png"
                if name == "png/antennas":
                    yield lambda p=path, k=map_id, t=tx_id: _check_dot(folder, p, k, t, sizes[k])
                else:
                    yield lambda p=path, n=name, k=map_id: _check_picture(p, n, sizes[k])
    for map_id in antennas:
        yield lambda k=map_id: _check_transmitters(folder, k, sizes[k])
    for name, found in polygons.items():
        if name.endswith("roads"):
            continue
        for map_id in found:
            yield (
                lambda n=name, k=map_id: (
                    folder.drawn(n.removeprefix("polygon/"), k, sizes[k] or (256, 256)) is None or None
                )
            )


def _count_transmitters(folder, map_id: int, gains: dict, dots: dict, report: Report) -> int:
    if (folder.root / "antenna" / f"{map_id}.json").is_file():
        try:
            folder.transmitter(map_id, 0, 256)
            return len(folder._memory[("antenna", map_id)])
        except ValueError:
            pass  # its own check reports it
    found = [t for pairs in (dots, *gains.values()) for t in pairs.get(map_id, ())]
    return max(found, default=-1) + 1


def _size_of(folder, map_id: int) -> tuple[int, int] | None:
    try:
        return folder.size(map_id)
    except ValueError:
        return None


def _check_picture(path: Path, name: str, size: tuple[int, int] | None) -> str | None:
    from .png import read_gray

    plane = read_gray(path)
    if size is not None and plane.shape != size:
        return f"{path}: {plane.shape[1]} x {plane.shape[0]} pixels, its map has {size[1]} x {size[0]}"
    if name.startswith("gain/") and not name.endswith("k2_neg_norm") and plane.max() == 0:
        return f"{path}: no signal anywhere"
    if name.startswith("png/buildings") and not np.isin(plane, (0, 255)).all():
        return f"{path}: gray levels between 0 and 255, a mask has none"
    return None


def _check_dot(folder, path: Path, map_id: int, tx_id: int, size: tuple[int, int] | None) -> str | None:
    from .png import read_gray

    plane = read_gray(path)
    bright = np.argwhere(plane > 127)
    if len(bright) != 1:
        return f"{path}: {len(bright)} bright pixels, expected one"
    if size is not None and plane.shape != size:
        return f"{path}: {plane.shape[1]} x {plane.shape[0]} pixels, its map has {size[1]} x {size[0]}"
    if (folder.root / "antenna" / f"{map_id}.json").is_file():
        column, row = folder.transmitter(map_id, tx_id, plane.shape[0])
        if (row, column) != tuple(bright[0]):
            return f"{path}: bright at column {bright[0][1]}, row {bright[0][0]}; antenna/ says {column}, {row}"
    return None


def _check_transmitters(folder, map_id: int, size: tuple[int, int] | None) -> str | None:
    height, width = size or (256, 256)
    folder.transmitter(map_id, 0, height)
    places = [folder.transmitter(map_id, t, height) for t in range(len(folder._memory[("antenna", map_id)]))]
    outside = [t for t, (c, r) in enumerate(places) if not (0 <= c < width and 0 <= r < height)]
    if outside:
        return f"{folder.root}/antenna/{map_id}.json: transmitters outside the map: {', '.join(map(str, outside))}"
    return None


# Others --------------------------------------------------------------------------------------------------------------


def _spectrograms(report: Report) -> Iterator[Job]:
    from .micro_doppler import find_users, images_of, load_image

    users = find_users(report.root)
    found = {name: images_of(report.root / name) for name in users.values()}
    report.problems += [f"{name}/: no images" for name, paths in found.items() if not paths]
    report.facts["users"] = len(users)
    report.facts["images a user"] = _span([len(paths) for paths in found.values()])
    for paths in found.values():
        for path in paths:
            yield lambda p=path: load_image(p, 8) is None or None


def _parquet(report: Report) -> Iterator[Job]:
    import pyarrow.parquet as pq

    from .hub_rows import check_spectrogram, map_pair

    def look(path: Path) -> str | None:
        import pyarrow as pa

        try:
            file = pq.ParquetFile(path)
            for batch in file.iter_batches(100):
                for row in batch.to_pylist():
                    if "gain" in row:
                        map_pair(row)
                    elif "image" in row:
                        check_spectrogram(row)
        except (OSError, pa.ArrowException) as error:
            return f"{path}: {' '.join(str(error).split())}"
        except ValueError as error:
            return f"{path}: {error}"
        rows[path.name.split("-")[0]] += file.metadata.num_rows
        report.facts["rows"] = ", ".join(f"{name} {count}" for name, count in sorted(rows.items()))
        return None

    rows: Counter[str] = Counter()
    for path in sorted([*report.root.glob("*.parquet"), *report.root.glob("data/*.parquet")]):
        yield lambda p=path: look(p)


def _span(values: list[int]) -> str:
    if not values:
        return "none"
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"

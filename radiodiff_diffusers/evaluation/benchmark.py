"""The benchmark: any predictors on any data set, every map scored alone, averaged into one table.

    predictors = [*make_predictors("dominant_path"), *make_predictors("model:my_model@1,5")]
    results = run_benchmark(TestSet("RadioMapSeer", split="test", count=50), predictors)
    write_tables(results, "table.md")

Scores are those of `metrics`, under the protocols `raw` and `thr0.2`, on all pixels and on free ones. Free pixels lie
outside the building mask and have a truth above gray 0: where the two disagree about a wall, no predictor can be
right.
"""

from __future__ import annotations

import csv
import dataclasses
import gc
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..data.measurements import PLACES, measure
from ..scene import RadioMap, Scene
from .metrics import (
    PROTOCOLS,
    db_per_unit,
    mae,
    map_metrics,
    nmse,
    region_metrics,
    rmse,
    spread_calibration,
    summarize,
    to_planes,
)
from .predictors import Predict, Predictor

_PLANES = ("buildings", "cars", "reflectance", "transmittance", "measurements", "k2")


# Data --------------------------------------------------------------------------------------------------------------


class TestSet:
    """Pairs of (`Scene`, `RadioMap`) to be scored, the scenes with measurements taken from their maps.

    Args:
        source: a folder or Hub data set that `data.hub.open_dataset` knows, or a sequence of pairs.
        split (`str`, defaults to `"all"`): which part of it.
        count (`int`, *optional*): so many maps, drawn at random without repetition; all where left out.
        seed: decides which maps, and where is measured.
        measurements (`int`, defaults to 100): how many pixels of each map are known to those who interpolate.
        places: where: `"random"`, `"edges"` or `"vertices"`.
        options: passed on to the data set (`simulation="IRT2"`, `layout="polygon"`, `missing=2`, ...).
    """

    __test__ = False  # not a test case, whatever pytest thinks of its name

    def __init__(
        self,
        source: Any,
        split: str = "all",
        *,
        count: int | None = None,
        seed: int = 0,
        measurements: int = 100,
        places: str = "random",
        **options: Any,
    ) -> None:
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1; got {count}")
        if measurements < 0:
            raise ValueError(f"measurements must be 0 or more; got {measurements}")
        if places not in PLACES:
            raise ValueError(f"unknown places for measurements {places!r}: use one of {', '.join(PLACES)}")
        self.name = str(source) if isinstance(source, (str, Path)) else type(source).__name__
        self.about = "".join(f", {name} {value}" for name, value in {"split": split, **options}.items())
        self.pairs = _open(source, split, options) if isinstance(source, (str, Path)) else source
        if not len(self.pairs):
            raise ValueError(f"{self.name} has no maps in split {split!r}")
        self.seed, self.measurements, self.places = seed, measurements, places
        self.indices = np.arange(len(self.pairs))
        if count is not None and count < len(self.pairs):
            self.indices = np.sort(np.random.default_rng(seed).choice(len(self.pairs), count, replace=False))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Scene, RadioMap]:
        index = int(self.indices[number])
        scene, truth = self.pairs[index]
        if scene.measurements is None and self.measurements:
            scene.measurements = measure(scene, truth, self.measurements, self.places, [self.seed, index])
        if scene.name is None:
            scene.name = f"{index}"
        return scene, truth


def _open(source: str | Path, split: str, options: dict[str, Any]) -> Any:
    from ..data.hub import open_dataset

    pairs = open_dataset(source, split, **options)
    first = pairs[0] if len(pairs) else None
    if first is not None and not (isinstance(first, tuple) and isinstance(first[0], Scene)):
        raise ValueError(f"{source} holds no radio maps: this benchmark needs scenes with their maps")
    return pairs


# Scoring -----------------------------------------------------------------------------------------------------------


def score_map(prediction: RadioMap, truth: RadioMap, scene: Scene) -> dict[str, float]:
    """Every score of one map, named `protocol/score` (see `COLUMNS`), and `spread/score` where it has a spread."""
    if prediction.scale != truth.scale:  # an engine's map, say, read on the indoor scale
        prediction = dataclasses.replace(prediction, scale=truth.scale)
    free = free_pixels(scene, truth)
    row: dict[str, float] = {}
    for protocol in PROTOCOLS:
        scores = map_metrics(prediction, truth, protocol)
        p, t = to_planes(prediction, truth, protocol)
        decibels = db_per_unit(truth.scale, protocol)
        if free.any():
            p, t = p[free], t[free]
            scores |= {"nmse/free": nmse(p, t), "rmse/free": rmse(p, t), "mae/free": mae(p, t)}
            scores |= {"rmse_db/free": rmse(p, t) * decibels, "mae_db/free": mae(p, t) * decibels}
        if scene.transmitter is not None:
            seen = scene.plane("visibility") > 0
            regions = region_metrics(prediction, truth, seen, ignore=~free, protocol=protocol)
            scores |= {name: value for name, value in regions.items() if not name.startswith("share")}
        row |= {f"{protocol}/{name}": value for name, value in scores.items()}
    if prediction.std_db is not None and free.any():
        spread = spread_calibration(prediction.gain_db, prediction.std_db, truth.gain_db, free)
        row |= {f"spread/{name}": value for name, value in spread.items()}
    return row


def free_pixels(scene: Scene, truth: RadioMap) -> np.ndarray:
    """Outside the building mask, and with a truth above gray 0."""
    return ~scene.buildings & (truth.gray > 0)


# Running -----------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One map of one predictor, kept for a picture."""

    name: str
    error: float
    scene: Scene
    truth: RadioMap
    prediction: RadioMap


@dataclass
class Result:
    """One predictor's scores: a row a map, and the worst cases, the worst first."""

    name: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    megabytes: float = math.nan
    worst: list[Case] = field(default_factory=list)

    def means(self) -> dict[str, float]:
        return {name: summary["mean"] for name, summary in summarize(self.rows).items()}


@dataclass
class Benchmark:
    """What `run_benchmark` gives: the results, and what they were taken on, line by line."""

    results: list[Result]
    about: list[str]


def run_benchmark(
    data: TestSet, predictors: Sequence[Predictor], *, batch_size: int = 1, worst: int = 3, progress: bool = True
) -> Benchmark:
    """Score every predictor on every map.

    Args:
        data: the maps.
        predictors: see `make_predictors`.
        batch_size (`int`, defaults to 1): scenes handed over at once; time a map is the batch's divided by its size.
        worst (`int`, defaults to 3): so many worst cases of each predictor are kept for pictures.
        progress: a bar on standard error.
    """
    from tqdm import tqdm

    if not predictors:
        raise ValueError("no predictor was given: name at least one")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    for predictor in predictors:
        if predictor.needs_measurements and not data.measurements and data[0][0].measurements is None:
            raise ValueError(
                f"{predictor.name} needs measurements: ask for some (measurements=100, --measurements 100)"
            )
    results = []
    with tqdm(total=len(predictors) * len(data), unit="map", disable=not progress, file=sys.stderr) as bar:
        for predictor in predictors:
            bar.set_description(predictor.name)
            results.append(_run_one(predictor, data, batch_size, worst, bar))
    return Benchmark(results, _about(data, batch_size))


def _run_one(predictor: Predictor, data: TestSet, batch_size: int, worst: int, bar: Any) -> Result:
    result = Result(predictor.name)
    if predictor.imports:
        import_module(predictor.imports)
    memory = _Memory()
    predict = predictor.load()
    # the first call compiles and allocates; a mirrored city, so that nothing of the real ones is known beforehand
    predict([_mirrored(data[0][0])] * min(batch_size, len(data)))
    for batch in _batches(data, batch_size):
        predictions, seconds = _timed(predict, [scene for scene, _ in batch], memory)
        for (scene, truth), prediction in zip(batch, predictions, strict=True):
            row = score_map(prediction, truth, scene)
            result.rows.append({"map": scene.name, "seconds": seconds / len(batch), **row})
            error = row.get("raw/nmse/free", row["raw/nmse"])
            result.worst.append(Case(scene.name, error, scene, truth, prediction))
        result.worst = sorted(result.worst, key=lambda case: -np.nan_to_num(case.error, nan=-1.0))[:worst]
        bar.update(len(batch))
    result.megabytes = memory.most
    return result


def _batches(data: TestSet, size: int) -> Iterator[list[tuple[Scene, RadioMap]]]:
    for start in range(0, len(data), size):
        yield [data[i] for i in range(start, min(start + size, len(data)))]


def _timed(predict: Predict, scenes: list[Scene], memory: _Memory) -> tuple[list[RadioMap], float]:
    # without the planes that an earlier predictor computed: each pays for its own rays
    scenes = [dataclasses.replace(scene, _planes={}) for scene in scenes]
    memory.start()
    started = time.perf_counter()
    predictions = predict(scenes)
    seconds = time.perf_counter() - started
    memory.stop()
    return predictions, seconds


def _mirrored(scene: Scene) -> Scene:
    if scene._cut_from is not None:
        return scene
    width = scene.shape[1]
    planes = {name: getattr(scene, name)[:, ::-1].copy() for name in _PLANES if getattr(scene, name) is not None}
    transmitter = scene.transmitter and (width - 1 - scene.transmitter[0], scene.transmitter[1])
    polygons = scene.polygons and tuple(
        tuple(ring[::-1] * (-1, 1) + (width - 1, 0) for ring in rings) for rings in scene.polygons
    )
    return scene.replace(**planes, transmitter=transmitter, polygons=polygons)


class _Memory:
    """The most memory, in MB, while predicting, above what the process held before the predictor was made.

    Resident memory where the system tells its peak (Linux), or the GPU's where networks run on one; NaN elsewhere.
    """

    def __init__(self) -> None:
        self.most = math.nan
        self.cuda = _cuda()
        _give_back()
        self.before = self.cuda.memory_allocated() if self.cuda else _status("VmRSS")

    def start(self) -> None:
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
        else:
            _reset_peak()

    def stop(self) -> None:
        peak = self.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        self.most = float(np.nanmax([self.most, (peak - self.before) / 1e6, 0.0])) if math.isfinite(peak) else math.nan


def _cuda() -> Any:
    """torch.cuda where torch is loaded and has a GPU; a benchmark of physics alone does not load it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _status(name: str) -> float:
    """A figure of /proc/self/status, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return math.nan


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def _give_back() -> None:
    """Hand the memory of the predictor before back to the system, so that it does not hide this one's."""
    gc.collect()
    if sys.platform == "linux":
        import ctypes

        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            pass


def _about(data: TestSet, batch_size: int) -> list[str]:
    import os
    import platform

    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cuda = _cuda()
    where = f"{cpu}, {cores} cores" + (f", {cuda.get_device_name()}" if cuda else "")
    return [
        f"{len(data)} of the {len(data.pairs)} maps of {data.name}{data.about}; seed {data.seed}",
        f"{data.measurements} measurements a map ({data.places}) where a predictor uses any",
        f"{where}; {batch_size} map{'s' * (batch_size > 1)} at a time; memory: the peak above what was held before",
    ]


# Tables ------------------------------------------------------------------------------------------------------------

# heading -> (score, decimals)
COLUMNS = {
    "NMSE": ("nmse", 4),
    "NMSE free": ("nmse/free", 4),
    "RMSE": ("rmse", 4),
    "MAE": ("mae", 4),
    "SSIM": ("ssim", 3),
    "PSNR": ("psnr", 2),
    "RMSE dB": ("rmse_db", 2),
    "MAE dB": ("mae_db", 2),
    "free RMSE dB": ("rmse_db/free", 2),
    "free MAE dB": ("mae_db/free", 2),
    "line of sight dB": ("rmse_db/line_of_sight", 2),
    "shadow dB": ("rmse_db/shadow", 2),
    "shadow edge dB": ("rmse_db/shadow_edge", 2),
}
SPREAD_COLUMNS = {
    "within 1 std": ("within_1_std", 3),
    "within 2 std": ("within_2_std", 3),
    "rank correlation": ("spearman", 3),
    "rms std dB": ("rms_std_db", 2),
    "free RMSE dB": ("rmse_db", 2),
}
PROTOCOL_TEXT = {
    "raw": "gray / 255",
    "thr0.2": "(max(gray / 255, 0.2) - 0.2) / 0.8, without what lies below the noise floor",
}


def markdown(benchmark: Benchmark, pictures: dict[str, Path] | None = None, title: str = "Benchmark") -> str:
    """The tables as Markdown: one a protocol, one for the spread where there is any, and links to pictures."""
    means = {result.name: result.means() for result in benchmark.results}
    lines = [f"# {title}", "", *(f"- {line}" for line in benchmark.about), ""]
    for protocol in PROTOCOLS:
        lines += [f"## `{protocol}`: {PROTOCOL_TEXT[protocol]}", ""]
        rows = []
        for result in benchmark.results:
            mean = means[result.name]
            cells = [_number(mean.get(f"{protocol}/{score}"), places) for score, places in COLUMNS.values()]
            rows.append([result.name, *cells, _seconds(mean.get("seconds")), _number(result.megabytes, 0)])
        lines += [*_table(["predictor", *COLUMNS, "s a map", "MB"], rows), ""]
    spread = {name: mean for name, mean in means.items() if "spread/within_2_std" in mean}
    if spread:
        lines += ["## Spread: does the standard deviation tell the error? (free pixels)", ""]
        rows = [
            [name, *(_number(mean[f"spread/{score}"], places) for score, places in SPREAD_COLUMNS.values())]
            for name, mean in spread.items()
        ]
        lines += [
            *_table(["predictor", *SPREAD_COLUMNS], rows),
            "",
            "A Gaussian error that the spread knows lies within 1 std in 0.683 of the pixels and within 2 in 0.954.",
            "",
        ]
    lines += [
        "Means over maps of each map's own score. Free: outside the building mask, truth above gray 0. Line of sight, "
        "shadow and shadow edge (within 3 pixels of the border between the two): RMSE of free pixels.",
        "",
    ]
    if pictures:
        lines += ["## Worst cases", ""]
        for name, path in pictures.items():
            lines += [f"{name}:", "", f"![worst cases of {name}]({path.as_posix()})", ""]
    return "\n".join(lines)


def _table(headings: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(headings) + " |",
        "|" + "|".join(["---"] + ["---:"] * (len(headings) - 1)) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def _number(value: float | None, places: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.{places}f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def write_tables(benchmark: Benchmark, path: str | Path, title: str = "Benchmark") -> list[Path]:
    """`path` (Markdown), the averages beside it as .csv, every map's scores as _maps.csv, worst cases as pictures."""
    path = Path(path)
    if path.suffix.lower() != ".md":
        raise ValueError(f"the table is Markdown: name a file that ends in .md, not {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for result in benchmark.results:
        if result.worst:
            name = "".join(c if c.isalnum() or c in "-._" else "_" for c in result.name)
            pictures[result.name] = draw_worst(result, path.with_name(f"{path.stem}_worst") / f"{name}.png")
    links = {name: picture.relative_to(path.parent) for name, picture in pictures.items()}
    path.write_text(markdown(benchmark, links, title), encoding="utf-8")
    averages, maps = [], []
    for result in benchmark.results:
        summary = summarize(result.rows)
        seconds = summary["seconds"]["mean"]
        for protocol in PROTOCOLS:
            means = {
                k.removeprefix(f"{protocol}/"): v["mean"] for k, v in summary.items() if k.startswith(f"{protocol}/")
            }
            spread = {k: v["mean"] for k, v in summary.items() if k.startswith("spread/")}
            about = {"predictor": result.name, "protocol": protocol, "maps": len(result.rows)}
            averages.append({**about, **means, **spread, "seconds": seconds, "megabytes": result.megabytes})
        maps += [{"predictor": result.name, **row} for row in result.rows]
    written = [
        path,
        _write_csv(path.with_suffix(".csv"), averages),
        _write_csv(path.with_name(f"{path.stem}_maps.csv"), maps),
    ]
    return [*written, *pictures.values()]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


# Pictures ----------------------------------------------------------------------------------------------------------


def draw_worst(result: Result, path: Path) -> Path:
    """Truth, prediction, error (and spread, where there is one) of a predictor's worst maps, a row each."""
    from ..reports.style import SPREAD_COLOURS, drawing, error_limit, error_map, finish_map, gain_map, save

    spread = any(case.prediction.std_db is not None for case in result.worst)
    columns = 4 if spread else 3
    errors = [_error(case) for case in result.worst]
    limit = error_limit(*errors)
    with drawing(
        len(errors), columns, size=(4.2 * columns, 3.6 * len(errors)), title=f"Worst cases of {result.name}"
    ) as (figure, axes):
        for row, case, error in zip(axes, result.worst, errors, strict=True):
            scene, scale = case.scene, case.truth.scale
            about = {"buildings": scene.buildings, "transmitter": scene.transmitter}
            gain_map(
                row[0],
                case.truth.gain_db,
                scale,
                f"{case.name}: truth",
                metres_per_pixel=scene.metres_per_pixel,
                **about,
            )
            gain_map(row[1], case.prediction.gain_db, scale, "prediction", **about)
            rms = np.sqrt(np.nanmean(error**2)) if np.isfinite(error).any() else math.nan
            error_map(row[2], error, limit, f"error, RMS {rms:.1f} dB")
            if case.prediction.std_db is not None:
                shown = np.where(scene.buildings, np.nan, case.prediction.std_db)
                image = row[3].imshow(shown, cmap=SPREAD_COLOURS, vmin=0, vmax=limit)
                finish_map(row[3], "standard deviation", scene.shape)
                figure.colorbar(image, ax=row[3], label="std [dB]", fraction=0.046, pad=0.02)
            elif spread:
                row[3].set_axis_off()
        return save(figure, path)


def _error(case: Case) -> np.ndarray:
    """Prediction minus truth in dB on free pixels, NaN elsewhere."""
    return np.where(free_pixels(case.scene, case.truth), case.prediction.gain_db - case.truth.gain_db, np.nan)

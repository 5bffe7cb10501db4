"""Two sets of maps compared pair by pair: scores a map, their summary, the best and the worst pairs, where errors lie.

    from radiodiff_diffusers.reports.compare import compare
    comparison = compare("predictions", "truth", "comparison")
    comparison.summary["rmse_db"]["mean"]

In place of the predictions' folder stands, if one likes, a predictor (a pipeline's folder or Hub id, or a physics
engine); the truth then is a data set in RadioMapSeer's layout, whose scenes the predictor is asked about.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.metrics import THRESHOLD, db_per_unit, map_metrics, summarize, to_planes
from ..scene import GainScale, RadioMap
from .parallel import run_parallel

MAPS = {".png", ".npz", ".tif", ".tiff", ".jpg", ".jpeg"}
ENGINES = ("dominant_path", "free_space", "ray_tracing")
SCALES = {"radiomapseer": GainScale.RADIOMAPSEER, "indoor": GainScale.INDOOR}
TITLES = {
    "nmse": "NMSE",
    "rmse": "RMSE (gray / 255)",
    "rmse_db": "RMSE [dB]",
    "mae": "MAE (gray / 255)",
    "mae_db": "MAE [dB]",
    "bias_db": "bias [dB]",
    "ssim": "SSIM",
    "psnr": "PSNR [dB]",
    "relative_error": "relative error, where heard",
    "brightest_distance_m": "distance of brightest points [m]",
    "sharpness_ratio": "sharpness ratio",
}
CHUNK = 16


@dataclass
class Comparison:
    """`rows` has one dict a pair (`name`, then the scores); `summary` their mean, spread and extremes."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    unpaired_predictions: list[str] = field(default_factory=list)
    unpaired_truths: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    pairs: dict[str, tuple[Path, Path]] = field(default_factory=dict)
    error_sum: np.ndarray | None = None
    error_square_sum: np.ndarray | None = None
    error_count: int = 0
    joint: np.ndarray = field(default_factory=lambda: np.zeros((256, 256), np.int64))
    protocol: str = "raw"
    scale: GainScale = GainScale.RADIOMAPSEER
    metres_per_pixel: float = 1.0
    page: Path | None = None

    @property
    def summary(self) -> dict[str, dict[str, float]]:
        return summarize(self.rows)


# Scores of one pair that only a comparison has ----------------------------------------------------------------------


def pair_scores(
    prediction: RadioMap, truth: RadioMap, protocol: str = "raw", metres_per_pixel: float = 1.0
) -> dict[str, float]:
    """All of `map_metrics`, and what the eye asks for: bias, relative error, brightest point, sharpness."""
    p, t = to_planes(prediction, truth, protocol)
    scores = map_metrics(prediction, truth, protocol)
    heard = t > (THRESHOLD if protocol == "raw" else 0.0)
    sharpness = laplacian_variance(t)
    sign = 1.0 if truth.scale.db_at_255 > truth.scale.db_at_0 else -1.0  # indoors brighter is weaker
    scores["bias_db"] = sign * float((p - t).mean()) * db_per_unit(truth.scale, protocol)
    scores["relative_error"] = float((np.abs(p - t)[heard] / t[heard]).mean()) if heard.any() else float("nan")
    distance = float(np.hypot(*np.subtract(brightest_point(p), brightest_point(t))))
    scores["brightest_distance_m"] = distance * metres_per_pixel
    scores["sharpness_ratio"] = laplacian_variance(p) / sharpness if sharpness > 0 else float("nan")
    return scores


def brightest_point(plane: np.ndarray) -> tuple[float, float]:
    """(row, column) of the largest value; the middle of them where several are equal."""
    rows, columns = np.nonzero(plane == plane.max())
    return float(rows.mean()), float(columns.mean())


def laplacian_variance(plane: np.ndarray) -> float:
    """How sharp a map is: blurred edges bend less."""
    middle = plane[1:-1, 1:-1]
    bend = plane[:-2, 1:-1] + plane[2:, 1:-1] + plane[1:-1, :-2] + plane[1:-1, 2:] - 4 * middle
    return float(bend.var()) if bend.size else 0.0


# Two folders -------------------------------------------------------------------------------------------------------


def find_maps(root: str | Path) -> dict[str, Path]:
    """Map files below a folder, by their relative path without ending."""
    root = Path(root)
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in MAPS and p.is_file())
    if not files:
        raise ValueError(f"{root} holds no maps ({', '.join(sorted(MAPS))})")
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def pair_by_name(predictions: dict[str, Path], truths: dict[str, Path]) -> dict[str, tuple[Path, Path]]:
    """By relative path; where that finds nothing, by file name alone if names are not repeated."""
    common = sorted(predictions.keys() & truths.keys(), key=_natural)
    if common:
        return {name: (predictions[name], truths[name]) for name in common}
    short = [{name.rsplit("/", 1)[-1]: path for name, path in maps.items()} for maps in (predictions, truths)]
    if len(short[0]) < len(predictions) or len(short[1]) < len(truths):
        return {}
    return {name: (short[0][name], short[1][name]) for name in sorted(short[0].keys() & short[1].keys(), key=_natural)}


def _natural(text: str) -> list:
    """2_9 before 2_10 before 10_1; numbers and words never meet in one comparison."""
    import re

    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", text)]


@dataclass(frozen=True)
class _Chunk:
    pairs: tuple[tuple[str, Path, Path], ...]
    protocol: str
    scale: GainScale
    metres_per_pixel: float


def _score_chunk(chunk: _Chunk) -> Comparison:
    result = Comparison(protocol=chunk.protocol, scale=chunk.scale, metres_per_pixel=chunk.metres_per_pixel)
    for name, *files in chunk.pairs:
        try:
            prediction, truth = (RadioMap.load(path, chunk.scale) for path in files)
            add_pair(result, name, prediction, truth)
        except (ValueError, OSError, KeyError) as error:
            result.failures.append((name, str(error)))
    return result


def add_pair(result: Comparison, name: str, prediction: RadioMap, truth: RadioMap) -> None:
    """Score one pair and add it to the sums."""
    metres = result.metres_per_pixel if truth.metres_per_pixel == 1.0 else truth.metres_per_pixel
    result.rows.append({"name": name, **pair_scores(prediction, truth, result.protocol, metres)})
    error = prediction.gain_db - truth.gain_db
    if result.error_sum is None or result.error_sum.shape == error.shape:
        zero = np.zeros(error.shape)
        result.error_sum = (zero if result.error_sum is None else result.error_sum) + error
        result.error_square_sum = (zero if result.error_square_sum is None else result.error_square_sum) + error**2
        result.error_count += 1
    where = np.rint(truth.gray).astype(np.int64).ravel() * 256 + np.rint(prediction.gray).astype(np.int64).ravel()
    result.joint += np.bincount(where, minlength=256 * 256).reshape(256, 256)


def _merge(total: Comparison, part: Comparison) -> None:
    total.rows += part.rows
    total.failures += part.failures
    total.joint += part.joint
    if part.error_sum is None:
        return
    if total.error_sum is None:
        total.error_sum, total.error_square_sum = part.error_sum.copy(), part.error_square_sum.copy()
        total.error_count = part.error_count
    elif total.error_sum.shape == part.error_sum.shape:
        total.error_sum += part.error_sum
        total.error_square_sum += part.error_square_sum
        total.error_count += part.error_count


def compare(
    predictions: str | Path,
    truths: str | Path,
    output: str | Path | None = None,
    protocol: str = "raw",
    scale: str = "radiomapseer",
    metres_per_pixel: float = 1.0,
    workers: int | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare two folders of maps (PNG, NPZ, TIFF), pairs by name.

    Args:
        predictions, truths (path): the folders.
        output (path, *optional*): write `pairs.csv`, `summary.csv`, figures and the page there.
        protocol (`str`): `"raw"` or `"thr0.2"`, see `evaluation.metrics`.
        scale (`str`): what the gray levels of PNG files mean: `"radiomapseer"` or `"indoor"`.
        metres_per_pixel (`float`): for the distance between brightest points; NPZ files know their own.
    """
    for what, folder in (("predictions", predictions), ("truth", truths)):
        if not Path(folder).is_dir():
            raise ValueError(f"{folder} ({what}) is not a folder")
    found, wanted = find_maps(predictions), find_maps(truths)
    pairs = pair_by_name(found, wanted)
    if not pairs:
        raise ValueError(
            f"no file of {predictions} ({len(found)} maps, as {next(iter(found))}) has the name of one of {truths} "
            f"({len(wanted)} maps, as {next(iter(wanted))})"
        )
    total = Comparison(pairs=pairs, protocol=protocol, scale=_scale(scale), metres_per_pixel=metres_per_pixel)
    used = {path for pair in pairs.values() for path in pair}
    total.unpaired_predictions = [name for name, path in found.items() if path not in used]
    total.unpaired_truths = [name for name, path in wanted.items() if path not in used]
    items = [(name, *files) for name, files in pairs.items()]
    chunks = [
        _Chunk(tuple(items[i : i + CHUNK]), protocol, total.scale, metres_per_pixel)
        for i in range(0, len(items), CHUNK)
    ]
    for part in run_parallel(_score_chunk, chunks, workers, "comparing", [len(c.pairs) for c in chunks], progress):
        _merge(total, part)
    if not total.rows:
        raise ValueError(f"none of the {len(pairs)} pairs could be compared; the first: {total.failures[0][1]}")
    if output is not None:
        write_comparison(total, output, Path(predictions).resolve().name, Path(truths).resolve().name)
    return total


def _scale(name: str) -> GainScale:
    if name not in SCALES:
        raise ValueError(f"unknown scale {name!r}: use one of {', '.join(SCALES)}")
    return SCALES[name]


# A predictor in place of a folder ------------------------------------------------------------------------------------


def is_predictor(name: str | Path) -> bool:
    """An engine's name, or a pipeline's folder."""
    return str(name) in ENGINES or (Path(name) / "model_index.json").is_file()


def compare_predictor(
    predictor: str,
    data: str | Path,
    output: str | Path,
    protocol: str = "raw",
    simulation: str = "DPM",
    split: str = "all",
    limit: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 4,
    progress: bool = True,
    layout: str | None = None,
) -> Comparison:
    """Predict the maps of a RadioMapSeer-like data set and compare; predictions and truths are kept in `output`."""
    import sys

    from tqdm.auto import tqdm

    from ..data.radiomapseer import RadioMapSeer

    # Engines are exact about walls, and the PNG masks of RadioMapSeer are half a pixel off: they get the outlines.
    if layout is None:
        outlines = predictor in ENGINES and (Path(data) / "polygon" / "buildings_complete").is_dir()
        layout = "polygon" if outlines else "png"
    try:
        samples = RadioMapSeer(data, split, simulation=simulation, layout=layout)
    except ValueError as error:
        reason = str(error).splitlines()[0].split(". Expected")[0]
        raise ValueError(f"{reason}: see `radiodiff data check {data}`") from None
    count = min(len(samples), limit) if limit else len(samples)
    if not count:
        raise ValueError(f"{data} has no {simulation} maps in the split {split!r}")
    # Spread over the set: its first maps are all of one town.
    chosen = np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int))
    total = Comparison(protocol=protocol)
    with tqdm(total=len(chosen), desc="predicting", unit="map", file=sys.stderr, disable=not progress) as bar:
        readable = _readable(samples, chosen, total.failures, bar)
        for scene, truth, prediction in _predictions(predictor, readable, steps, seed, batch_size):
            total.metres_per_pixel = scene.metres_per_pixel
            paths = [Path(output) / kind / f"{scene.name}.png" for kind in ("predictions", "truth")]
            total.pairs[scene.name] = (prediction.save(paths[0]), truth.save(paths[1]))
            add_pair(total, scene.name, prediction, truth)
            bar.update()
    if not total.rows:
        raise ValueError(f"none of the {len(chosen)} maps could be read; the first: {total.failures[0][1]}")
    write_comparison(total, output, str(predictor), f"{Path(data).resolve().name}, {simulation}")
    return total


def _readable(samples: Any, chosen: np.ndarray, failures: list, bar: Any) -> Iterator[tuple[Any, RadioMap]]:
    """Scene and truth of the chosen maps; what is damaged is noted, and the rest goes on."""
    for i in chosen:
        try:
            yield samples[int(i)]
        except (ValueError, OSError) as error:
            failures.append((samples.files(int(i)), str(error)))
            bar.update()


def _predictions(
    predictor: str, samples: Iterator[tuple[Any, RadioMap]], steps: int | None, seed: int, batch_size: int
) -> Iterator[tuple[Any, RadioMap, RadioMap]]:
    if predictor in ENGINES:
        from .. import engines

        engine = getattr(engines, predictor)
        for scene, truth in samples:
            yield scene, truth, engine(scene)
        return
    import torch

    from .. import RadioDiffPipeline

    pipe = RadioDiffPipeline.from_pretrained(predictor)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    while batch := list(itertools.islice(samples, batch_size)):
        maps = pipe([scene for scene, _ in batch], num_inference_steps=steps, generator=seed).maps
        for (scene, truth), prediction in zip(batch, maps, strict=True):
            yield scene, truth, prediction


# What is written -----------------------------------------------------------------------------------------------------


def write_comparison(total: Comparison, output: str | Path, predicted: str, true: str) -> tuple[Path, Path]:
    """`pairs.csv`, `summary.csv`, the figures, and the page as Markdown and HTML."""
    from . import compare_figures as figures
    from .document import Document, counted

    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    summary = total.summary
    _write_csv(folder / "pairs.csv", total.rows)
    _write_csv(folder / "summary.csv", [{"score": name, **values} for name, values in summary.items()])
    document = Document(f"{predicted} against {true}")
    document.heading("In short")
    document.text(
        f"**{len(total.rows):,} pairs**: NMSE {summary['nmse']['mean']:.4f}, RMSE "
        f"{summary['rmse_db']['mean']:.2f} dB, "
        f"SSIM {summary['ssim']['mean']:.4f}, PSNR {summary['psnr']['mean']:.2f} dB. Scores are of single maps, then "
        f"averaged; protocol `{total.protocol}`."
    )
    ratio = summary["sharpness_ratio"]["median"]
    if np.isfinite(ratio) and not 0.7 < ratio < 1.4:
        word = "blurred" if ratio < 1 else "noisy"
        document.note("warn", f"Predictions look {word}: the median sharpness is {ratio:.2f} times the truth's.")
    bias = summary["bias_db"]["mean"]
    if abs(bias) > 1:
        document.note(
            "warn", f"Predictions are too {'strong' if bias > 0 else 'weak'} by {abs(bias):.1f} dB on average."
        )
    for one, other, names in (
        ("prediction", "truth", total.unpaired_predictions),
        ("truth", "prediction", total.unpaired_truths),
    ):
        if names:
            shown = ", ".join(names[:5]) + (" and more" if len(names) > 5 else "")
            document.note("warn", f"{counted(len(names), one)} without {other}: {shown}.")
    if total.failures:
        name, reason = total.failures[0]
        failed = counted(len(total.failures), "pair")
        document.note("bad", f"{failed} could not be compared; the first: {name}: {reason}")
    document.table(
        ["score", "mean", "spread", "median", "smallest", "largest", "maps", "left out"],
        [[TITLES.get(name, name), *(v[k] for k in ("mean", "std", "median", "min", "max", "count", "left_out"))]
         for name, v in summary.items()],
    )  # fmt: skip
    document.heading("Distributions")
    document.figure(
        figures.distributions(total, folder / "figures" / "distributions.png"), "Scores of the single maps."
    )
    ranked = sorted(total.rows, key=lambda row: row["rmse"])
    for title, rows, name in (("Worst pairs", ranked[::-1], "worst"), ("Best pairs", ranked, "best")):
        document.heading(title)
        picture = figures.pairs(total, rows[:4], folder / "figures" / f"{name}.png", title)
        document.figure(picture, "Truth, prediction, and the error in dB, by RMSE.")
    document.heading("Where the errors are")
    if total.error_count > 0:
        picture = figures.error_places(total, folder / "figures" / "error_places.png")
        document.figure(picture, f"Bias and RMSE at each pixel over {total.error_count:,} maps of one size.")
    picture = figures.error_levels(total, folder / "figures" / "error_levels.png")
    document.figure(picture, "Prediction against truth over all pixels, and the error by true gain.")
    for title, names in (
        ("Predictions without truth", total.unpaired_predictions),
        ("Truths without prediction", total.unpaired_truths),
        ("Pairs that failed", [f"{name}: {reason}" for name, reason in total.failures]),
    ):
        if names:
            document.heading(title)
            document.items([f"`{name}`" for name in names[:500]])
            if len(names) > 500:
                document.text(f"and {len(names) - 500:,} more")
    written = document.write(folder)
    total.page = written[1]
    return written


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)

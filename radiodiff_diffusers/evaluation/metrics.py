"""How close one radio map is to another: numbers for a pair of maps, and for a set of pairs.

A map is a `RadioMap`, or a (height, width) array of gray levels 0..255. Scores are computed per map and then averaged
(`summarize`), on a plane with data range 1 that the protocol names:

- `raw`: gray / 255;
- `thr0.2`: (max(gray / 255, 0.2) - 0.2) / 0.8, which leaves out what lies below the noise floor of RadioMapSeer.

Published figures mix the two, and batch-wise with map-wise averages; `original_batch_metrics` gives the batch-wise
figures of the original RadioDiff code, to compare with what was published, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from ..scene import GainScale, RadioMap

PROTOCOLS = ("raw", "thr0.2")
THRESHOLD = 0.2
# torchmetrics' PSNR of the time took this range when none was given, and the original gives none.
ORIGINAL_PSNR_RANGE = 3.0
SSIM_K1, SSIM_K2, SSIM_SIGMA, SSIM_RADIUS = 0.01, 0.03, 1.5, 5


# Planes ------------------------------------------------------------------------------------------------------------


def to_plane(map_: RadioMap | np.ndarray, protocol: str = "raw") -> np.ndarray:
    """A map as (height, width) float64 in [0, 1] under `protocol`."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: use one of {', '.join(PROTOCOLS)}")
    gray = map_.gray if isinstance(map_, RadioMap) else np.asarray(map_)
    if gray.ndim != 2:
        raise ValueError(f"a map must be one (height, width) plane; got shape {gray.shape}")
    if gray.dtype.kind not in "uif":
        raise ValueError(f"a map must hold gray levels 0..255; got {gray.dtype}")
    plane = gray.astype(np.float64) / 255.0
    low, high = (plane.min(), plane.max()) if plane.size else (0.0, 0.0)
    if not (low >= 0.0 and high <= 1.0):  # NaN fails too
        raise ValueError(f"a map must hold gray levels 0..255; got {low * 255:g} .. {high * 255:g}")
    return plane if protocol == "raw" else (np.maximum(plane, THRESHOLD) - THRESHOLD) / (1.0 - THRESHOLD)


def to_planes(
    prediction: RadioMap | np.ndarray, target: RadioMap | np.ndarray, protocol: str = "raw"
) -> tuple[np.ndarray, np.ndarray]:
    """Both maps under `protocol`, checked to be of one size and scale."""
    if isinstance(prediction, RadioMap) and isinstance(target, RadioMap) and prediction.scale != target.scale:
        raise ValueError("prediction and target are on different gain scales: bring both to one before comparing")
    planes = to_plane(prediction, protocol), to_plane(target, protocol)
    _check_same_shape(*planes)
    return planes


def db_per_unit(scale: GainScale = GainScale.RADIOMAPSEER, protocol: str = "raw") -> float:
    """How many dB the data range 1 of `protocol` spans."""
    span = abs(scale.db_at_255 - scale.db_at_0)
    return span if protocol == "raw" else span * (1.0 - THRESHOLD)


def _check_same_shape(prediction: np.ndarray, target: np.ndarray) -> None:
    if prediction.shape != target.shape:
        (h, w), (height, width) = prediction.shape[-2:], target.shape[-2:]
        raise ValueError(f"the prediction is {w} x {h} pixels but the target {width} x {height}: they must be equal")


# One number for two planes in [0, 1] -------------------------------------------------------------------------------


def nmse(prediction: np.ndarray, target: np.ndarray) -> float:
    """Squared error over the target's squared sum; NaN for a target that is zero everywhere."""
    power = float(np.square(target).sum())
    return float(np.square(prediction - target).sum()) / power if power > 0 else float("nan")


def rmse(prediction: np.ndarray, target: np.ndarray) -> float:
    return float(np.sqrt(np.square(prediction - target).mean()))


def mae(prediction: np.ndarray, target: np.ndarray) -> float:
    return float(np.abs(prediction - target).mean())


def psnr(prediction: np.ndarray, target: np.ndarray, data_range: float = 1.0) -> float:
    """Peak signal to noise ratio in dB; infinite for equal planes."""
    error = float(np.square(prediction - target).mean())
    return float(10.0 * np.log10(data_range**2 / error)) if error > 0 else float("inf")


def ssim(prediction: np.ndarray, target: np.ndarray, data_range: float = 1.0) -> float:
    """Structural similarity, Gaussian window 11 x 11 of sigma 1.5, borders mirrored: equals torchmetrics'."""
    mean_p, mean_t, mean_squares, mean_product = (
        _blur(plane) for plane in (prediction, target, prediction * prediction + target * target, prediction * target)
    )
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    squares, product = mean_p * mean_p + mean_t * mean_t, mean_p * mean_t
    variances = np.maximum(mean_squares - squares, 0.0)
    similarity = (2 * product + c1) * (2 * (mean_product - product) + c2) / ((squares + c1) * (variances + c2))
    return float(similarity.mean())


@lru_cache(maxsize=1)
def _gaussian() -> np.ndarray:
    taps = np.exp(-0.5 * (np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1) / SSIM_SIGMA) ** 2)
    return taps / taps.sum()


def _blur(plane: np.ndarray) -> np.ndarray:
    from scipy.ndimage import correlate1d

    return correlate1d(correlate1d(plane, _gaussian(), axis=0, mode="mirror"), _gaussian(), axis=1, mode="mirror")


# One map -----------------------------------------------------------------------------------------------------------


def map_metrics(
    prediction: RadioMap | np.ndarray,
    target: RadioMap | np.ndarray,
    protocol: str = "raw",
    scale: GainScale | None = None,
) -> dict[str, float]:
    """All scores of one map: `nmse`, `rmse`, `mae`, `ssim`, `psnr` on the protocol's plane; `rmse_db`, `mae_db` in dB.

    `scale` says what gray levels mean where arrays are given; a `RadioMap` knows its own.
    """
    planes = to_planes(prediction, target, protocol)
    if scale is None:
        scale = next((m.scale for m in (target, prediction) if isinstance(m, RadioMap)), GainScale.RADIOMAPSEER)
    decibels = db_per_unit(scale, protocol)
    root, absolute = rmse(*planes), mae(*planes)
    return {
        "nmse": nmse(*planes),
        "rmse": root,
        "mae": absolute,
        "ssim": ssim(*planes),
        "psnr": psnr(*planes),
        "rmse_db": root * decibels,
        "mae_db": absolute * decibels,
    }


def region_masks(
    visibility: np.ndarray, ignore: np.ndarray | None = None, edge_pixels: int = 3
) -> dict[str, np.ndarray]:
    """Where to look: `line_of_sight`, `shadow`, and `shadow_edge`, within `edge_pixels` of the border between the two.

    The first two share no pixel; the edge lies across both. `visibility` is True where the transmitter is seen;
    `ignore` (buildings, say) is left out of all three, and does not make an edge.
    """
    from scipy.ndimage import distance_transform_edt

    seen = _as_mask(visibility, "visibility")
    counted = np.ones_like(seen) if ignore is None else ~_as_mask(ignore, "ignore")
    if counted.shape != seen.shape:
        raise ValueError(f"ignore has shape {counted.shape} but visibility has {seen.shape}: they must be equal")
    lit, dark = seen & counted, ~seen & counted
    edge = np.zeros_like(seen)
    if lit.any() and dark.any():
        to_dark, to_lit = distance_transform_edt(~dark), distance_transform_edt(~lit)
        edge = (lit & (to_dark <= edge_pixels)) | (dark & (to_lit <= edge_pixels))
    return {"line_of_sight": lit, "shadow": dark, "shadow_edge": edge}


def region_metrics(
    prediction: RadioMap | np.ndarray,
    target: RadioMap | np.ndarray,
    visibility: np.ndarray,
    ignore: np.ndarray | None = None,
    protocol: str = "raw",
    edge_pixels: int = 3,
    scale: GainScale | None = None,
) -> dict[str, float]:
    """RMSE of the map's parts, in the protocol's unit and in dB, with each part's share of the pixels counted.

    Keys are `rmse/line_of_sight`, `rmse_db/line_of_sight`, `share/line_of_sight` and so on (`region_masks`); a part
    without pixels has RMSE NaN.
    """
    p, t = to_planes(prediction, target, protocol)
    if scale is None:
        scale = next((m.scale for m in (target, prediction) if isinstance(m, RadioMap)), GainScale.RADIOMAPSEER)
    masks = region_masks(visibility, ignore, edge_pixels)
    if masks["shadow"].shape != t.shape:
        shape = masks["shadow"].shape
        raise ValueError(f"visibility has shape {shape} but the maps have {t.shape}: they must be equal")
    counted = int((masks["line_of_sight"] | masks["shadow"]).sum())
    result = {}
    for name, mask in masks.items():
        value = rmse(p[mask], t[mask]) if mask.any() else float("nan")
        result[f"rmse/{name}"] = value
        result[f"rmse_db/{name}"] = value * db_per_unit(scale, protocol)
        result[f"share/{name}"] = int(mask.sum()) / counted if counted else float("nan")
    return result


def _as_mask(value: np.ndarray, name: str) -> np.ndarray:
    """Boolean from a boolean or 0/1 array, or from a condition plane in [-1, 1]."""
    mask = np.asarray(value)
    if mask.ndim != 2:
        raise ValueError(f"{name} must be one (height, width) plane; got shape {mask.shape}")
    return mask if mask.dtype == bool else mask > (0 if mask.size and mask.min() < 0 else 0.5)


# Several samples of one map ----------------------------------------------------------------------------------------


def spread_calibration(
    mean_db: np.ndarray, std_db: np.ndarray, target_db: np.ndarray, mask: np.ndarray | None = None
) -> dict[str, float]:
    """Whether the spread of several samples tells how wrong their mean is. Planes in dB; `mask`: which pixels count.

    `within_2_std` is the share of pixels whose truth lies within two standard deviations (0.954 for a Gaussian that
    is right), `within_1_std` likewise (0.683). `spearman` is the rank correlation of spread and absolute error (1: the
    widest spread is the largest error; NaN where either is constant). `rms_std_db` and `rmse_db` are equal when the
    spread has the right size.
    """
    from scipy.stats import rankdata

    planes = [np.asarray(plane, np.float64) for plane in (mean_db, std_db, target_db)]
    for plane in planes[1:]:
        _check_same_shape(plane, planes[0])
    mean, std, target = planes if mask is None else (plane[_as_mask(mask, "mask")] for plane in planes)
    if not mean.size:
        raise ValueError("the mask leaves no pixel to look at")
    if std.min() < 0:
        raise ValueError(f"a standard deviation cannot be negative; the smallest given is {std.min():g}")
    error = np.abs(mean - target)
    ranks = rankdata(std.ravel()), rankdata(error.ravel())
    deviations = [rank - rank.mean() for rank in ranks]
    norm = float(np.sqrt(np.square(deviations[0]).sum() * np.square(deviations[1]).sum()))
    return {
        "within_1_std": float((error <= std).mean()),
        "within_2_std": float((error <= 2 * std).mean()),
        "spearman": float((deviations[0] * deviations[1]).sum()) / norm if norm > 0 else float("nan"),
        "rms_std_db": float(np.sqrt(np.square(std).mean())),
        "rmse_db": float(np.sqrt(np.square(error).mean())),
    }


# Many maps ---------------------------------------------------------------------------------------------------------


def summarize(rows: Iterable[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """For each score: `mean`, `std`, `median`, `min`, `max`, `count`, over the maps where it is finite.

    A score is not finite where it means nothing: PSNR of equal maps, NMSE of an empty target. `left_out` counts those.
    """
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, (int, float))))
    summary = {}
    for name in names:
        values = np.array([row[name] for row in rows if name in row], np.float64)
        finite = values[np.isfinite(values)]
        known = finite if finite.size else np.array([np.nan])
        statistics = {k: float(getattr(np, k)(known)) for k in ("mean", "std", "median", "min", "max")}
        summary[name] = {**statistics, "count": int(finite.size), "left_out": int(values.size - finite.size)}
    return summary


def original_batch_metrics(
    predictions: Sequence[RadioMap | np.ndarray],
    targets: Sequence[RadioMap | np.ndarray],
    batch_size: int | None = None,
) -> dict[str, float]:
    """The original RadioDiff evaluation: scores of whole batches, averaged by batch size; to compare with its figures.

    It differs from `map_metrics` in three ways: NMSE, RMSE and PSNR come from the squared error of the whole batch;
    PSNR's data range is 3; SSIM's is the larger of the prediction's and the target's own ranges in the batch.
    `batch_size` `None` is one batch of everything.
    """
    if len(predictions) != len(targets) or not len(targets):
        raise ValueError(f"got {len(predictions)} predictions for {len(targets)} targets: give one each, at least one")
    size = len(targets) if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    totals: dict[str, float] = {}
    for start in range(0, len(targets), size):
        batch = slice(start, start + size)
        pairs = [to_planes(p, t) for p, t in zip(predictions[batch], targets[batch], strict=True)]
        if len({t.shape for _, t in pairs}) > 1:
            raise ValueError("the maps of a batch must be of one size; use batch_size=1 for maps of several sizes")
        p, t = (np.stack(planes) for planes in zip(*pairs, strict=True))
        own_range = max(np.ptp(p), np.ptp(t)) or 1.0
        scores = {
            "nmse": nmse(p, t),
            "rmse": rmse(p, t),
            "mae": mae(p, t),
            "ssim": float(np.mean([ssim(a, b, own_range) for a, b in zip(p, t, strict=True)])),
            "psnr": psnr(p, t, ORIGINAL_PSNR_RANGE),
        }
        for name, value in scores.items():
            totals[name] = totals.get(name, 0.0) + value * len(t)
    return {name: total / len(targets) for name, total in totals.items()}

"""The figures of a comparison: distributions, best and worst pairs, and where errors lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..scene import RadioMap
from . import style
from .compare import TITLES, Comparison

SHOWN = ("nmse", "rmse_db", "mae_db", "ssim", "psnr", "relative_error", "brightest_distance_m", "sharpness_ratio")


def distributions(total: Comparison, path: Path) -> Path:
    """A histogram a score, its median marked."""
    with style.drawing(2, 4, (14.5, 6.2), f"Scores of {len(total.rows):,} maps") as (figure, grid):
        for axes, name in zip(grid.flat, SHOWN, strict=True):
            values = np.array([row[name] for row in total.rows], float)
            values = values[np.isfinite(values)]
            if not values.size:
                style.label(axes, TITLES[name])
                style.message(axes, "not defined for any map")
                continue
            axes.hist(values, bins=_edges(values), color=style.BLUE)
            style.count_axis(axes)
            axes.axvline(np.median(values), color=style.ORANGE, label=f"median {np.median(values):.4g}")
            style.label(axes, "", TITLES[name], "maps")
            axes.margins(y=0.25)
            axes.legend(loc="upper right")
        return style.save(figure, path)


def _edges(values: np.ndarray) -> np.ndarray:
    """Up to 30 bins over all values but the farthest per cent, which the outermost bins take in."""
    low, high = np.quantile(values, [0.0, 0.99]) if len(values) > 100 else (values.min(), values.max())
    if high <= low:
        return np.linspace(low - 0.5 * abs(low) - 1e-3, low + 0.5 * abs(low) + 1e-3, 12)
    edges = np.linspace(low, high, int(np.clip(len(values) // 3, 8, 30)) + 1)
    edges[-1] = max(edges[-1], values.max())
    return edges


def pairs(total: Comparison, rows: list[dict], path: Path, title: str) -> Path:
    """A row a pair: truth, prediction, error."""
    loaded = []
    for row in rows:
        prediction, truth = (RadioMap.load(file, total.scale) for file in total.pairs[row["name"]])
        loaded.append((row, prediction, truth, prediction.gain_db - truth.gain_db))
    limit = style.error_limit(*(error for *_, error in loaded))
    with style.drawing(len(loaded), 3, (11.8, 3.4 * len(loaded) + 0.5), title) as (figure, grid):
        for axes, (row, prediction, truth, error) in zip(grid, loaded, strict=True):
            metres = truth.metres_per_pixel if truth.metres_per_pixel != 1.0 else total.metres_per_pixel
            text = f"prediction, SSIM {row['ssim']:.3f}"
            # Walls are where the truth says so, on both: what a prediction puts inside them is in the error.
            walls = truth.gray == 0 if truth.scale.db_at_0 < truth.scale.db_at_255 else None
            for panel, shown, title_ in ((axes[0], truth, f"{row['name']}: truth"), (axes[1], prediction, text)):
                image = style.gain_map(
                    panel, shown.gain_db, shown.scale, title_, walls, metres_per_pixel=metres, colorbar=False
                )
            text = f"error, RMSE {row['rmse_db']:.2f} dB"
            wrong = style.error_map(axes[2], error, limit, text, metres_per_pixel=metres, colorbar=False)
            figure.colorbar(image, ax=axes[:2], label="gain [dB]", fraction=0.025, pad=0.02)
            figure.colorbar(wrong, ax=axes[2], label="error [dB]", fraction=0.05, pad=0.02, extend="both")
        return style.save(figure, path)


def error_places(total: Comparison, path: Path) -> Path:
    """Bias and RMSE at each pixel, over all maps of one size."""
    bias = total.error_sum / total.error_count
    root = np.sqrt(total.error_square_sum / total.error_count)
    with style.drawing(1, 2, (9.6, 4.3), "Where the errors are") as (figure, grid):
        metres = total.metres_per_pixel
        style.error_map(grid[0, 0], bias, style.error_limit(bias), "mean error", metres)
        image = grid[0, 1].imshow(root, cmap=style.SPREAD_COLOURS, vmin=0, vmax=float(np.quantile(root, 0.995)) or 1.0)
        style.finish_map(grid[0, 1], "RMSE", root.shape, None, metres)
        figure.colorbar(image, ax=grid[0, 1], label="RMSE [dB]", fraction=0.046, pad=0.02)
        return style.save(figure, path)


def error_levels(total: Comparison, path: Path) -> Path:
    """Joint histogram of truth and prediction, and bias and RMSE at each true gain."""
    db = total.scale.to_db(np.arange(256)).astype(float)
    low, high = min(db[0], db[-1]), max(db[0], db[-1])
    joint = total.joint if db[0] < db[-1] else total.joint[::-1, ::-1]
    level = np.sort(db)
    with style.drawing(1, 2, (11.5, 4.4), "Errors by gain") as (figure, grid):
        a, b = grid[0]
        step = level[1] - level[0]
        density = np.ma.masked_equal(joint.T / joint.sum() / step**2, 0)
        extent = (low, high, low, high)
        image = a.imshow(density, origin="lower", extent=extent, cmap=style.SPREAD_COLOURS, norm="log", aspect="equal")
        a.plot([low, high], [low, high], color=style.ORANGE, linestyle="--", label="equal")
        figure.colorbar(image, ax=a, label="density [1/dB²]", fraction=0.046, pad=0.02)
        style.label(a, "All pixels", "true gain [dB]", "predicted gain [dB]")
        a.legend(loc="upper left")
        pixels = joint.sum(1)
        known = pixels > max(pixels.sum() * 1e-5, 10)
        error = level[None] - level[:, None]
        bias = np.divide((joint * error).sum(1), pixels, out=np.full(256, np.nan), where=known)
        root = np.sqrt(np.divide((joint * error**2).sum(1), pixels, out=np.full(256, np.nan), where=known))
        b.plot(level, root, color=style.BLUE, label="RMSE")
        b.plot(level, bias, color=style.ORANGE, label="bias")
        b.axhline(0, color=style.GRAY, linewidth=0.8)
        style.label(b, "At each true gain", "true gain [dB]", "error [dB]")
        b.legend()
        return style.save(figure, path)

"""Where a few measurements are taken: at random, along building edges, or at building corners."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..scene import RadioMap, Scene

PLACES = ("random", "edges", "vertices")


def measurement_places(
    buildings: np.ndarray, how: str = "random", seed: Any = 0, polygons: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of every pixel where `how` allows a measurement, in an order that `seed` decides.

    Take the first n of them: a larger n adds places and keeps the earlier ones. Nobody measures inside a building.

    Args:
        buildings: boolean mask.
        how: `"random"` (any free pixel), `"edges"` (free pixels beside a building) or `"vertices"` (the free pixel
            next to each building corner; corners come from `polygons`, or from the mask's straightened outlines where
            there are none).
        seed: anything `numpy.random.default_rng` takes.
    """
    if how == "random":
        allowed = ~buildings
    elif how == "edges":
        from scipy.ndimage import binary_dilation

        allowed = binary_dilation(buildings) & ~buildings
    elif how == "vertices":
        allowed = _beside_corners(buildings, polygons)
    else:
        raise ValueError(f"unknown places for measurements {how!r}: use one of {', '.join(PLACES)}")
    rows, columns = np.nonzero(allowed)
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows[order], columns[order]


def measure(scene: Scene, radio_map: RadioMap, count: int, how: str = "random", seed: Any = 0) -> np.ndarray:
    """(H, W) gain in dB at up to `count` places and NaN elsewhere, for `Scene.measurements`."""
    rows, columns = measurement_places(scene.buildings, how, seed, scene.polygons)
    return take(radio_map.gain_db, rows[:count], columns[:count])


def take(gain_db: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The values at some pixels, NaN at all others."""
    measured = np.full(gain_db.shape, np.nan, np.float32)
    measured[rows, columns] = gain_db[rows, columns]
    return measured


def _beside_corners(buildings: np.ndarray, polygons: Any) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    from ..geometry import as_rings

    allowed = np.zeros_like(buildings)
    if buildings.all():
        return allowed
    if polygons is None:
        from ..engines.outlines import outlines

        polygons = outlines(buildings)
    corners = [ring for polygon in polygons for ring in as_rings(polygon)]
    if not corners:
        return allowed
    height, width = buildings.shape
    columns, rows = np.rint(np.concatenate(corners)).astype(int).T
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = rows[inside], columns[inside]
    _, nearest = distance_transform_edt(buildings, return_indices=True)  # of each pixel, the nearest free one
    allowed[nearest[0][rows, columns], nearest[1][rows, columns]] = True
    return allowed

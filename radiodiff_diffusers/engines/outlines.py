"""Building outlines from a raster mask, for engines that work on corners."""

from __future__ import annotations

import numpy as np
import shapely

TOLERANCE = 0.75  # pixels that a wall may be off; a staircase with steps of one pixel is a straight wall


def outlines(mask: np.ndarray) -> tuple[tuple[np.ndarray, ...], ...]:
    """The outlines of the True regions of a mask, oblique walls straight again, as `Scene.polygons` has them."""
    rows, starts, ends = _runs(mask)
    boxes = shapely.box(starts - 0.5, rows - 0.5, ends + 0.5, rows + 0.5)
    whole = shapely.simplify(shapely.union_all(boxes), TOLERANCE) if len(boxes) else shapely.Polygon()
    return tuple(
        tuple(shapely.get_coordinates(ring) for ring in shapely.get_rings(polygon))
        for polygon in shapely.get_parts(whole)
        if not polygon.is_empty
    )


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    return rows, starts, ends - 1

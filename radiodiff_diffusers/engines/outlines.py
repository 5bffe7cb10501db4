"""Building outlines from a raster mask, for engines that work on corners."""

from __future__ import annotations

import numpy as np
import shapely

TOLERANCE = 0.7  # pixels that a wall may be off: a staircase with steps of one pixel is a straight wall


def outlines(mask: np.ndarray, raster_offset: tuple[float, float] = (0.0, 0.0)) -> tuple[tuple[np.ndarray, ...], ...]:
    """The outlines of the True regions of a mask, oblique walls straight again, as `Scene.polygons` has them.

    `raster_offset` is the scene's: where in the mask's pixels the map's points lie.
    """
    rows, starts, ends = _runs(mask)
    if not len(rows):
        return ()
    regions = shapely.union_all(shapely.box(starts - 0.5, rows - 0.5, ends + 0.5, rows + 0.5))
    # Through the middle of every pixel's border, so that staircases average out to their wall.
    regions = [
        [_middles(shapely.get_coordinates(ring)) for ring in shapely.get_rings(region)]
        for region in shapely.get_parts(shapely.segmentize(regions, 1.0))
    ]
    smooth = shapely.simplify([shapely.Polygon(rings[0], rings[1:]) for rings in regions], TOLERANCE)
    return tuple(
        tuple(shapely.get_coordinates(ring) - raster_offset for ring in shapely.get_rings(region)) for region in smooth
    )


def _middles(ring: np.ndarray) -> np.ndarray:
    return (ring[1:] + ring[:-1]) / 2


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    return rows, starts, ends - 1

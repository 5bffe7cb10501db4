"""Polygons and pixels: exact rasters of building outlines, and outlines made fit for physics engines.

A polygon is a sequence of rings of `(x, y)` points, the outside first and then its holes; a bare ring counts as a
polygon without holes. Rings may be closed (last point = first) or not, and may run either way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

# Where RadioMapSeer's two rasters look, seen on its map 0 with polygons in pixels (x = px - 1, y = 256 - py): the gain
# maps at the pixel's centre (0 of 65,536 pixels differ), the building masks half a pixel right and up (1 differs). The
# corners are whole metres, so many edges run exactly through such points: the small nudge says to whom they belong.
RADIOMAPSEER_OFFSET = (1e-6, -1e-6)
RADIOMAPSEER_MASK_OFFSET = (0.5, -0.5 - 1e-6)

if TYPE_CHECKING:
    from .scene import Scene

Rings = tuple[np.ndarray, ...]


def as_rings(polygon: Any) -> Rings:
    """One polygon as a tuple of `(n, 2)` float arrays without the repeated last point."""
    if len(polygon) and np.ndim(polygon[0]) == 1:
        polygon = (polygon,)
    rings = []
    for ring in polygon:
        points = np.asarray(ring, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
            raise ValueError(f"a polygon ring must be finite (x, y) points; got an array of shape {points.shape}")
        if len(points) > 1 and np.array_equal(points[0], points[-1]):
            points = points[:-1]
        rings.append(points)
    return tuple(rings)


def rasterize(
    polygons: Iterable[Any], shape: tuple[int, int], offset: tuple[float, float] = RADIOMAPSEER_OFFSET
) -> np.ndarray:
    """Which pixels lie in any of the polygons: pixel `(c, r)` does where a polygon holds the point `(c + dx, r + dy)`.

    Inside is decided by the even-odd rule over all rings of one polygon, so holes are holes whichever way they run
    and a ring that crosses itself encloses what it encloses an odd number of times; different polygons are united.
    Points exactly on an edge belong to the polygon on its right and upper edges and not on its left and lower ones, so
    that neighbours never share a pixel.

    Args:
        polygons: polygons in pixel coordinates.
        shape: `(height, width)`.
        offset: `(dx, dy)`, where in the pixel to look. The default is the raster of RadioMapSeer's gain maps.

    Returns:
        (height, width) boolean array.
    """
    height, width = (int(side) for side in shape)
    dx, dy = offset
    starts, ends, owners = _edges(polygons)
    # Every edge is walked from its upper end, so that an edge two polygons share rounds alike in both.
    swap = starts[:, 1] > ends[:, 1]
    upper, lower = np.where(swap[:, None], ends, starts), np.where(swap[:, None], starts, ends)
    first_row = np.clip(np.ceil(upper[:, 1] - dy), 0, height).astype(np.int64)
    end_row = np.clip(np.ceil(lower[:, 1] - dy), 0, height).astype(np.int64)
    spans = np.maximum(end_row - first_row, 0)
    edge = np.repeat(np.arange(len(spans)), spans)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(spans) - spans, spans) + first_row[edge]
    up, low = upper[edge], lower[edge]
    crossing = up[:, 0] + (row + dy - up[:, 1]) * (low[:, 0] - up[:, 0]) / (low[:, 1] - up[:, 1])
    column = np.clip(np.floor(crossing - dx) + 1, 0, width).astype(np.int64)

    # In a row, the crossings of one polygon come in pairs: pixels between the two of a pair are inside.
    order = np.lexsort((column, row, owners[edge]))
    cells = (row * (width + 1) + column)[order]
    steps = np.bincount(cells[0::2], minlength=height * (width + 1)) - np.bincount(
        cells[1::2], minlength=height * (width + 1)
    )
    return np.cumsum(steps.reshape(height, width + 1), axis=1)[:, :width] > 0


def clean_polygons(polygons: Iterable[Any], min_area: float = 1e-9) -> tuple[Rings, ...]:
    """The same area as simple polygons: no ring crosses itself; outsides counter-clockwise (y up), holes clockwise.

    Self-intersecting outlines fall into several polygons; degenerate rings and slivers below `min_area` are left out.
    """
    from shapely import Polygon, make_valid
    from shapely.geometry.polygon import orient

    cleaned: list[Rings] = []
    for polygon in polygons:
        rings = [ring for ring in as_rings(polygon) if len(ring) >= 3]
        if not rings:
            continue
        shape = Polygon(rings[0], rings[1:])
        if not shape.is_valid:
            shape = make_valid(shape)
        for part in getattr(shape, "geoms", [shape]):
            for piece in getattr(part, "geoms", [part]):
                if piece.geom_type == "Polygon" and piece.area > min_area:
                    piece = orient(piece)
                    cleaned.append(
                        tuple(np.asarray(ring.coords, np.float64)[:-1] for ring in (piece.exterior, *piece.interiors))
                    )
    return tuple(cleaned)


def signed_area(ring: Sequence[Any]) -> float:
    """The area a ring encloses, positive where it runs counter-clockwise (y up), negative where clockwise."""
    x, y = np.asarray(ring, np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _edges(polygons: Iterable[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts and ends of all edges, and the polygon each belongs to."""
    rings, owners = [], []
    for owner, polygon in enumerate(polygons):
        for ring in as_rings(polygon):
            if len(ring):
                rings.append(ring)
                owners.append(owner)
    if not rings:
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, np.int64)
    starts = np.concatenate(rings)
    sizes = [len(ring) for ring in rings]
    return starts, starts[following(sizes)], np.repeat(owners, sizes)


def following(sizes: Sequence[int]) -> np.ndarray:
    """Of rings of points one after another, `sizes` points each: the index of every point's next one on its ring."""
    ends = np.cumsum(sizes)
    index = np.arange(1, ends[-1] + 1)
    index[ends - 1] = ends - sizes
    return index


def distance_metres(scene: Scene) -> np.ndarray:
    """(H, W) metres from the transmitter to each pixel's centre, along the ground."""
    x, y = scene.require_transmitter("a distance channel")
    height, width = scene.shape
    across = (np.arange(width, dtype=np.float32) - np.float32(x)) ** 2
    down = (np.arange(height, dtype=np.float32) - np.float32(y)) ** 2
    return np.sqrt(across[None, :] + down[:, None]) * np.float32(scene.metres_per_pixel)

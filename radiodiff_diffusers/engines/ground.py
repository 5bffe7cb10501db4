"""The free ground of a city in triangles: what all transmitters of one city share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely

from .wavefront import cross, label_pixels

# Pixels that walls are drawn back, so that pixel centres exactly on a wall, and rays that touch a corner, are free.
TOUCH = 0.01
# Pixels from its centre at which a pixel on a wall meets it.
BESIDE = 0.05
# Beyond the raster; rays never leave it, so any positive margin does.
MARGIN = 4.0


@dataclass(eq=False)
class Ground:
    """Free ground as triangles: points, corner indices (cross product positive), neighbours across edge (i, i + 1)."""

    points: np.ndarray
    triangles: np.ndarray
    neighbours: np.ndarray
    triangle_of_pixel: np.ndarray  # (H, W), -1 inside walls
    on_wall: np.ndarray  # (H, W), pixels whose centre lies on a wall

    @property
    def mesh(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.points, self.triangles, self.neighbours


def covered_area(polygons: Iterable[Iterable[np.ndarray]]) -> shapely.Geometry:
    """The ground that polygons cover, whatever their rings' order, direction, overlaps and self-crossings."""
    rings, owners = [], []
    for owner, polygon in enumerate(polygons):
        parts = [part for part in (np.asarray(ring, np.float64) for ring in polygon) if len(part) >= 3]
        rings += parts
        owners += [owner] * len(parts)
    if not rings:
        return shapely.Polygon()
    lines = shapely.linearrings(np.concatenate(rings), indices=np.repeat(np.arange(len(rings)), [*map(len, rings)]))
    areas = shapely.polygons(lines, indices=np.unique(owners, return_inverse=True)[1])
    areas = shapely.get_parts(shapely.make_valid(areas))
    return shapely.disjoint_subset_union_all(areas[shapely.get_dimensions(areas) == 2])


def build_ground(shape: tuple[int, int], walls: shapely.Geometry) -> Ground:
    """Triangulate what `walls` (pixels) leave free of a raster of `shape`."""
    height, width = shape
    left, top, right, bottom = shapely.total_bounds([walls, shapely.box(0, 0, width - 1, height - 1)])
    walls = shapely.buffer(walls, -TOUCH, join_style="mitre", mitre_limit=10.0)
    free = shapely.box(left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN).difference(walls)
    points, triangles, neighbours = _triangulate(free)
    labels = np.full(shape, -1, np.int32)
    label_pixels(points, triangles, labels)
    on_wall = np.zeros(shape, bool)
    for step in ((-BESIDE, -BESIDE), (-BESIDE, BESIDE), (BESIDE, -BESIDE), (BESIDE, BESIDE)):
        beside = np.full(shape, -1, np.int32)
        label_pixels(points + step, triangles, beside)
        on_wall |= (beside < 0) & (labels >= 0)
    return Ground(points, triangles, neighbours, labels, on_wall)


def _triangulate(area: shapely.Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Constrained Delaunay triangles: points, triangles of point indices, neighbours across their edges."""
    cut = shapely.constrained_delaunay_triangles(area)
    corners = np.ascontiguousarray(shapely.get_coordinates(cut).reshape(-1, 4, 2)[:, :3])
    points, index = np.unique(corners.view(np.complex128), return_inverse=True)  # pairs, sorted as numbers are
    points, triangles = points.view(np.float64).reshape(-1, 2), index.reshape(-1, 3)
    a, b, c = (points[triangles[:, i]] for i in range(3))
    area = cross(b[:, 0] - a[:, 0], b[:, 1] - a[:, 1], c[:, 0] - a[:, 0], c[:, 1] - a[:, 1])
    triangles[area < 0] = triangles[area < 0][:, ::-1]
    triangles = np.ascontiguousarray(triangles[area != 0], np.int32)

    tails = triangles.ravel().astype(np.int64)
    heads = np.roll(triangles, -1, axis=1).ravel().astype(np.int64)
    key, mirrored = tails * len(points) + heads, heads * len(points) + tails
    order = np.argsort(key)
    twin = order[np.minimum(np.searchsorted(key, mirrored, sorter=order), len(key) - 1)]
    neighbours = np.where(key[twin] == mirrored, twin // 3, -1).reshape(-1, 3).astype(np.int32)
    return points, triangles, neighbours

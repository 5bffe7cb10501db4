"""What a dominant path needs to know of a city: its free ground in triangles, its corners, and which corners see each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numba import njit

from .visibility import OPTIONS, cross, locate, look, row_span, triangle_rows, within


# Facades that bend less than this are straight for a wave; drawing them in more points must not make more corners.
STRAIGHT_DEGREES = 1.0
# A way along a wall, kept off it at both ends, is parallel to it only nearly.
TANGENT_SLACK = 0.02


@dataclass(eq=False)
class City:
    """The geometry all transmitters of a city share; in pixels. See `build_city`."""

    shape: tuple[int, int]
    points: np.ndarray  # (V, 2) corners of the triangles
    triangles: np.ndarray  # (T, 3) left-handed ends first: cross product positive
    neighbours: np.ndarray  # (T, 3) triangle beyond edge (i, i + 1), or -1 at a wall
    triangle_of_pixel: np.ndarray  # (H, W), -1 in buildings
    corners: np.ndarray  # (N, 2) where paths turn, a little off the wall
    corner_walls: np.ndarray  # (N, 4) unit directions of the two walls that meet there
    corner_triangles: np.ndarray  # (N,)
    corners_start: np.ndarray  # (T + 1,) which corners lie in which triangle
    corners_in: np.ndarray
    links_start: np.ndarray  # (N + 1,) which corners a corner has a taut way to
    links_to: np.ndarray
    links_length: np.ndarray  # pixels


def building_shapes(polygons) -> shapely.Geometry:
    """The ground that buildings cover, whatever the rings' order, direction, overlaps and self-crossings."""
    parts = []
    for rings in polygons:
        rings = [np.asarray(ring, np.float64) for ring in rings]
        rings = [ring for ring in rings if len(np.unique(ring, axis=0)) >= 3]
        if rings:
            whole = shapely.make_valid(shapely.Polygon(rings[0], rings[1:]))
            parts += [p for p in shapely.get_parts(whole) if p.geom_type == "Polygon" or p.geom_type == "MultiPolygon"]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def build_city(shape: tuple[int, int], buildings: shapely.Geometry, offset: float, margin: float) -> City:
    """Triangulate the ground between `buildings` and link the corners that see each other.

    `offset` (pixels) keeps corners off their wall; `margin` is how far beyond the raster paths may lead.
    """
    height, width = shape
    left, top, right, bottom = shapely.total_bounds([buildings, shapely.box(0, 0, width - 1, height - 1)])
    ground = shapely.box(left - margin, top - margin, right + margin, bottom + margin).difference(buildings)
    points, triangles, neighbours = triangulate(ground)
    pixel_triangle = np.full(shape, -1, np.int32)
    _label(points, triangles, pixel_triangle)

    corners, walls = convex_corners(buildings, offset)
    home = np.array([locate(x, y, points, triangles) for x, y in corners], np.int32)
    corners, walls, home = corners[home >= 0], walls[home >= 0], home[home >= 0]
    order = np.argsort(home, kind="stable")
    start = np.searchsorted(home[order], np.arange(len(triangles) + 1)).astype(np.int32)
    links_start, links_to, links_length = _link(
        corners, walls, home, start, order.astype(np.int32), points, triangles, neighbours
    )
    return City(
        shape, points, triangles, neighbours, pixel_triangle, corners, walls, home, start, order.astype(np.int32),
        links_start, links_to, links_length,
    )  # fmt: skip


def triangulate(ground: shapely.Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Constrained Delaunay triangles of an area: points, triangles of point indices, neighbours across their edges."""
    cut = shapely.constrained_delaunay_triangles(ground)
    rings = shapely.get_coordinates(cut).reshape(-1, 4, 2)[:, :3]
    points, index = np.unique(rings.reshape(-1, 2), axis=0, return_inverse=True)
    triangles = index.reshape(-1, 3)
    a, b, c = (points[triangles[:, i]] for i in range(3))
    area = cross(b[:, 0] - a[:, 0], b[:, 1] - a[:, 1], c[:, 0] - a[:, 0], c[:, 1] - a[:, 1])
    triangles[area < 0] = triangles[area < 0][:, ::-1]
    triangles = triangles[area != 0].astype(np.int32)

    tails = triangles.ravel().astype(np.int64)
    heads = np.roll(triangles, -1, axis=1).ravel().astype(np.int64)
    key, mirrored = tails * len(points) + heads, heads * len(points) + tails
    order = np.argsort(key)
    place = np.minimum(np.searchsorted(key, mirrored, sorter=order), len(key) - 1)
    twin = order[place]
    neighbours = np.where(key[twin] == mirrored, twin // 3, -1).reshape(-1, 3).astype(np.int32)
    return points, np.ascontiguousarray(triangles), neighbours


def convex_corners(buildings: shapely.Geometry, offset: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners that a path can turn round: their places, `offset` off the wall, and the directions of their two walls."""
    places, walls = [np.empty((0, 2))], [np.empty((0, 4))]
    for polygon in shapely.get_parts(shapely.simplify(buildings, 1e-6)):
        if polygon.is_empty:
            continue
        # Positive signed area: with y down as with y up, the building is then where the cross product is positive.
        for ring in shapely.get_rings(shapely.orient_polygons(polygon)):
            at = shapely.get_coordinates(ring)[:-1]
            back, ahead = np.roll(at, 1, axis=0) - at, np.roll(at, -1, axis=0) - at
            back /= np.linalg.norm(back, axis=1, keepdims=True)
            ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
            bend = np.degrees(np.arctan2(cross(-back[:, 0], -back[:, 1], ahead[:, 0], ahead[:, 1]), -(back * ahead).sum(1)))
            convex = bend > STRAIGHT_DEGREES
            outward = np.stack([-back[:, 1] + ahead[:, 1], back[:, 0] - ahead[:, 0]], axis=1)
            outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-12)
            places.append((at + offset * outward)[convex])
            walls.append(np.concatenate([back, ahead], axis=1)[convex])
    return np.concatenate(places), np.concatenate(walls)


@njit(**OPTIONS)
def _label(points, triangles, labels):
    height, width = labels.shape
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        top, bottom = triangle_rows(ax, ay, bx, by, cx, cy, height, 1e-4)
        for row in range(top, bottom + 1):
            first, last = row_span(ax, ay, bx, by, cx, cy, row, width, 1e-4)
            for column in range(first, last + 1):
                labels[row, column] = t


@njit(**OPTIONS)
def side_of(dx, dy, walls):
    """On which side a way in direction d has the building of a corner it passes: 1 left, -1 right, 0 where it would cut into it."""
    length = np.hypot(dx, dy)
    back = cross(dx, dy, walls[0], walls[1]) / length
    ahead = cross(dx, dy, walls[2], walls[3]) / length
    if back >= -TANGENT_SLACK and ahead >= -TANGENT_SLACK and back + ahead > 0.0:
        return 1
    if back <= TANGENT_SLACK and ahead <= TANGENT_SLACK and back + ahead < 0.0:
        return -1
    return 0


@njit(**OPTIONS)
def seen_corners(x, y, home, wedge, corners, corners_start, corners_in, points, triangles, neighbours, seen, cones, fan, marks, found):
    """The corners that (x, y) sees, each once, into `found`; returns how many. `marks` must be all False and stays so."""
    n_fan, n_seen = look(x, y, home, wedge, points, triangles, neighbours, fan, seen, cones)
    count = 0
    for k in range(n_seen):
        t = seen[k]
        all_round = cones[k, 0] == 0.0 and cones[k, 1] == 0.0
        for j in range(corners_start[t], corners_start[t + 1]):
            corner = corners_in[j]
            if marks[corner]:
                continue
            dx, dy = corners[corner, 0] - x, corners[corner, 1] - y
            if all_round or within(dx, dy, cones[k, 0], cones[k, 1], cones[k, 2], cones[k, 3]):
                marks[corner] = True
                found[count] = corner
                count += 1
    for k in range(count):
        marks[found[k]] = False
    return count


@njit(**OPTIONS)
def _link(corners, walls, home, corners_start, corners_in, points, triangles, neighbours):
    n = corners.shape[0]
    room = 4 * triangles.shape[0] + 1024
    seen, cones, fan = np.empty(room, np.int32), np.empty((room, 4)), np.empty((room, 6))
    marks, found = np.zeros(n, np.bool_), np.empty(n, np.int32)
    all_round = np.zeros(4)
    start = np.zeros(n + 1, np.int64)
    to, length = np.empty(64 * n + 1, np.int32), np.empty(64 * n + 1)
    used = 0
    for u in range(n):
        x, y = corners[u, 0], corners[u, 1]
        count = seen_corners(
            x, y, home[u], all_round, corners, corners_start, corners_in, points, triangles, neighbours, seen, cones, fan, marks, found
        )
        if used + count > to.shape[0]:
            more = 2 * (used + count)
            bigger_to, bigger_length = np.empty(more, np.int32), np.empty(more)
            bigger_to[:used], bigger_length[:used] = to[:used], length[:used]
            to, length = bigger_to, bigger_length
        for k in range(count):
            v = found[k]
            if v == u:
                continue
            dx, dy = corners[v, 0] - x, corners[v, 1] - y
            if dx * dx + dy * dy < 1e-12 or side_of(dx, dy, walls[u]) == 0 or side_of(dx, dy, walls[v]) == 0:
                continue
            to[used], length[used] = v, np.hypot(dx, dy)
            used += 1
        start[u + 1] = used
    return start, to[:used].copy(), length[:used].copy()

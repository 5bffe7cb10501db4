"""The dominant path model: the strongest single way from the transmitter to every pixel, round corners or over the roofs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from ..scene import RadioMap, Scene
from .city import City, build_city, building_shapes, seen_corners, side_of
from .outlines import outlines
from .visibility import OPTIONS, cross, locate, look, row_span, triangle_rows, walk


SPEED_OF_LIGHT = 299_792_458.0
BEHIND_WALL = 0.5  # radians
SLACK = 1e-4  # pixels; a pixel centre exactly on a wall or shadow line is lit


@dataclass(frozen=True)
class PathLaws:
    """The constants of the model; the defaults are RadioMapSeer's, read off its maps (docs/dominant_path.md).

    Args:
        sight_exponent: loss grows with 10 times this a decade of distance in line of sight.
        shadow_exponent: the same for the whole length of a way that turns.
        corner_loss: dB that every corner costs, however small the turn.
        corner_loss_per_degree: dB for every degree of the turn.
        largest_turn: degrees; a sharper turn costs no more than this one.
        corner_offset: metres at which ways pass a corner.
        roof_loss: dB that the way over the roofs costs beside its two turns.
        margin: metres beyond the map's edge that ways may use.
    """

    sight_exponent: float = 2.5
    shadow_exponent: float = 2.8
    corner_loss: float = 2.085
    corner_loss_per_degree: float = 0.1545
    largest_turn: float = 70.0
    corner_offset: float = 0.2
    roof_loss: float = 2.0
    margin: float = 32.0


def prepare(scene: Scene, **laws: float) -> City:
    """The part of `dominant_path`'s work that all transmitters of a city share: pass it on as `city=`."""
    laws_ = PathLaws(**laws)
    polygons = scene.polygons if scene.polygons is not None else outlines(scene.buildings)
    metres = scene.metres_per_pixel
    return build_city(scene.shape, building_shapes(polygons), laws_.corner_offset / metres, laws_.margin / metres)


def dominant_path(scene: Scene, *, city: City | None = None, **laws: float) -> RadioMap:
    """The gain of the strongest single path to every pixel; see `PathLaws` for the constants, all of which can be given here.

    `city` is what `prepare(scene)` made, for many transmitters in one city. Buildings come out at the scale's floor.
    """
    x, y = scene.require_transmitter("dominant_path")
    city = city or prepare(scene, **laws)
    constants = PathLaws(**laws)
    if city.shape != scene.shape:
        raise ValueError(f"city was prepared for {city.shape[1]} x {city.shape[0]} pixels, the scene has {scene.shape[1]} x {scene.shape[0]}")
    loss = path_loss(city, x, y, scene, constants)
    reference = 20.0 * np.log10(4.0 * np.pi * scene.frequency_hz / SPEED_OF_LIGHT)
    scale = RadioMap.__dataclass_fields__["scale"].default
    gain = np.where(scene.buildings, scale.floor_db, np.maximum(-reference - loss, scale.floor_db))
    return RadioMap(gain.astype(np.float32), scale=scale, metres_per_pixel=scene.metres_per_pixel)


def path_loss(city: City, x: float, y: float, scene: Scene, laws: PathLaws) -> np.ndarray:
    """dB beyond the free-space loss at 1 m, for every pixel (infinite where no path leads)."""
    home = locate(x, y, city.points, city.triangles)
    if home < 0:
        x, y, home = _step_out(city, x, y)
    constants = np.array(
        [laws.sight_exponent, laws.shadow_exponent, laws.corner_loss, laws.corner_loss_per_degree, laws.largest_turn, laws.roof_loss]
    )
    rise = scene.building_height - np.array([scene.transmitter_height, scene.receiver_height])
    loss = np.full(city.shape, np.inf)
    _trace(
        x, y, home, scene.metres_per_pixel, constants, rise, loss, city.points, city.triangles, city.neighbours,
        city.triangle_of_pixel, city.corners, city.corner_walls, city.corner_triangles, city.corners_start, city.corners_in,
        city.links_start, city.links_to, city.links_length,
    )  # fmt: skip
    return _close_gaps(loss, scene.buildings)


def _step_out(city: City, x: float, y: float) -> tuple[float, float, int]:
    """The nearest free ground to a transmitter that was drawn inside a wall."""
    a = city.points[city.triangles]
    walls = city.neighbours < 0
    tail, head = a[walls], np.roll(a, -1, axis=1)[walls]
    along = head - tail
    s = np.clip(((np.array([x, y]) - tail) * along).sum(1) / (along**2).sum(1), 0, 1)
    foot = tail + s[:, None] * along
    nearest = np.argmin(((foot - (x, y)) ** 2).sum(1))
    inward = np.array([-along[nearest, 1], along[nearest, 0]]) / np.hypot(*along[nearest])
    for step in (1e-2, 1e-3, 1e-5, 0.0):
        px, py = foot[nearest] + step * inward
        home = locate(px, py, city.points, city.triangles)
        if home >= 0:
            return px, py, home
    raise ValueError(f"the transmitter ({x:g}, {y:g}) has no free ground near it")


def _close_gaps(loss: np.ndarray, buildings: np.ndarray) -> np.ndarray:
    """Free pixels whose centre lies inside an outline (drawn at another place of the pixel) take their best neighbour's loss."""
    for _ in range(3):
        open_ = np.isinf(loss) & ~buildings
        if not open_.any():
            break
        padded = np.pad(loss, 1, constant_values=np.inf)
        around = [padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        loss = np.where(open_, np.minimum.reduce(around), loss)
    return loss


@njit(**OPTIONS)
def _turn_loss(degrees, constants):
    return constants[2] + constants[3] * min(degrees, constants[4])


@njit(**OPTIONS)
def _angle(ax, ay, bx, by):
    return abs(np.degrees(np.arctan2(cross(ax, ay, bx, by), ax * bx + ay * by)))


@njit(**OPTIONS)
def _trace(
    x, y, home, metres, constants, rise, loss, points, triangles, neighbours,
    triangle_of_pixel, corners, walls, corner_triangles, corners_start, corners_in, links_start, links_to, links_length,
):  # fmt: skip
    room = 4 * triangles.shape[0] + 1024
    seen, cones, fan = np.empty(room, np.int32), np.empty((room, 4)), np.empty((room, 6))
    n = corners.shape[0]
    marks, found = np.zeros(n, np.bool_), np.empty(n, np.int32)
    wedge = np.zeros(4)
    sight, shadow = 10.0 * constants[0], 10.0 * constants[1]
    height, width = loss.shape

    # Line of sight.
    n_fan, _ = look(x, y, home, wedge, points, triangles, neighbours, fan, seen, cones)
    for k in range(n_fan):
        top, bottom = triangle_rows(x, y, fan[k, 0], fan[k, 1], fan[k, 2], fan[k, 3], height, SLACK)
        for row in range(top, bottom + 1):
            first, last = row_span(x, y, fan[k, 0], fan[k, 1], fan[k, 2], fan[k, 3], row, width, SLACK)
            for column in range(first, last + 1):
                d = np.hypot(column - x, row - y) * metres
                loss[row, column] = sight * np.log10(max(d, 1.0))

    # Least loss to every corner, one best way each (Dijkstra; a heap is not worth it beside the filling below).
    best = np.full(n, np.inf)
    length, turned = np.zeros(n), np.zeros(n)
    way = np.zeros((n, 2))
    side = np.zeros(n, np.int8)
    done = np.zeros(n, np.bool_)
    count = seen_corners(
        x, y, home, wedge, corners, corners_start, corners_in, points, triangles, neighbours, seen, cones, fan, marks, found
    )
    for k in range(count):
        v = found[k]
        dx, dy = corners[v, 0] - x, corners[v, 1] - y
        s = side_of(dx, dy, walls[v])
        if s != 0:
            length[v] = np.hypot(dx, dy) * metres
            best[v] = shadow * np.log10(max(length[v], 1.0))
            way[v, 0], way[v, 1] = dx, dy
            side[v] = s
    for _ in range(n):
        u, least = -1, np.inf
        for v in range(n):
            if not done[v] and best[v] < least:
                u, least = v, best[v]
        if u < 0:
            break
        done[u] = True
        for k in range(links_start[u], links_start[u + 1]):
            v = links_to[k]
            if done[v]:
                continue
            dx, dy = corners[v, 0] - corners[u, 0], corners[v, 1] - corners[u, 1]
            if side_of(dx, dy, walls[u]) != side[u] or cross(way[u, 0], way[u, 1], dx, dy) * side[u] < 0.0:
                continue
            turns = turned[u] + _turn_loss(_angle(way[u, 0], way[u, 1], dx, dy), constants)
            far = length[u] + links_length[k] * metres
            cost = shadow * np.log10(max(far, 1.0)) + turns
            if cost < best[v]:
                best[v], length[v], turned[v] = cost, far, turns
                way[v, 0], way[v, 1] = dx, dy
                side[v] = side_of(dx, dy, walls[v])

    # From every corner that was reached, light what lies round it.
    for u in range(n):
        if not done[u]:
            continue
        cx, cy = corners[u, 0], corners[u, 1]
        _wedge_behind(way[u, 0], way[u, 1], side[u], walls[u], wedge)
        n_fan, _ = look(cx, cy, corner_triangles[u], wedge, points, triangles, neighbours, fan, seen, cones)
        for k in range(n_fan):
            top, bottom = triangle_rows(cx, cy, fan[k, 0], fan[k, 1], fan[k, 2], fan[k, 3], height, SLACK)
            for row in range(top, bottom + 1):
                first, last = row_span(cx, cy, fan[k, 0], fan[k, 1], fan[k, 2], fan[k, 3], row, width, SLACK)
                for column in range(first, last + 1):
                    dx, dy = column - cx, row - cy
                    far = length[u] + np.hypot(dx, dy) * metres
                    cost = shadow * np.log10(max(far, 1.0)) + turned[u] + constants[2]
                    if cost >= loss[row, column]:
                        continue
                    cost += constants[3] * min(_angle(way[u, 0], way[u, 1], dx, dy), constants[4])
                    if cost < loss[row, column]:
                        loss[row, column] = cost

    # Over the roofs: straight in plan, up at the first wall and down at the last.
    for row in range(height):
        for column in range(width):
            t = triangle_of_pixel[row, column]
            if t < 0:
                continue
            across = np.hypot(column - x, row - y) * metres
            least = shadow * np.log10(max(across, 1.0)) + 2.0 * constants[2] + constants[5]
            if least >= loss[row, column]:
                continue
            end, wx, wy = walk(float(column), float(row), t, x, y, points, triangles, neighbours)
            if end >= 0:
                continue
            last_wall = np.hypot(column - wx, row - wy) * metres
            end, wx, wy = walk(x, y, home, float(column), float(row), points, triangles, neighbours)
            first_wall = np.hypot(x - wx, y - wy) * metres
            up = np.degrees(np.arctan2(rise[0], first_wall))
            down = np.degrees(np.arctan2(rise[1], last_wall))
            far = np.hypot(first_wall, rise[0]) + max(across - first_wall - last_wall, 0.0) + np.hypot(last_wall, rise[1])
            cost = shadow * np.log10(far) + _turn_loss(up, constants) + _turn_loss(down, constants) + constants[5]
            if cost < loss[row, column]:
                loss[row, column] = cost


@njit(**OPTIONS)
def _wedge_behind(dx, dy, side, walls, wedge):
    """Directions in which a way that came along d may leave a corner: from straight on, round the building, to its far wall.

    A little further, in fact: ways pass the corner off the wall, and the pixels on the wall itself lie behind the parallel.
    What the wall hides stays hidden.
    """
    fx, fy = walls[0], walls[1]
    if cross(fx, fy, walls[2], walls[3]) * side < 0.0:
        fx, fy = walls[2], walls[3]
    length = np.hypot(dx, dy)
    turn = abs(np.arctan2(cross(dx, dy, fx, fy), dx * fx + dy * fy))
    turn = side * min(turn + BEHIND_WALL, np.pi - 1e-6)
    fx, fy = (dx * np.cos(turn) - dy * np.sin(turn)) / length, (dx * np.sin(turn) + dy * np.cos(turn)) / length
    if side > 0:
        wedge[0], wedge[1], wedge[2], wedge[3] = dx, dy, fx, fy
    else:
        wedge[0], wedge[1], wedge[2], wedge[3] = fx, fy, dx, dy

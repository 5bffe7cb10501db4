"""Building outlines from a raster mask, for engines that work on corners."""

from __future__ import annotations

import math

import numpy as np
import shapely
from numba import njit
from scipy.ndimage import label

from ..geometry import following, rasterize
from ..scene import Scene

TOLERANCE = 0.7  # pixels that a wall may be off: a staircase with steps of one pixel is a straight wall
# For masks whose corners are known to be whole metres: coarse outlines to begin with, finer ones where those fail, and
# what a corner, a wrong pixel (1) and a squared pixel between wall and staircase cost in the choice among them.
TOLERANCES = (1.3, 1.1, 0.9, 0.7, 0.5)
CORNER, SPREAD = 1.0, 0.1
SMALL = 24  # pixels round a building
BEYOND = 2  # pixels beyond the mask from which a wall still touches it
# A mask pixel counts by the point at its centre; walls that run exactly through one are settled as
# `geometry.rasterize` does.
NUDGE = 1e-6

Polygons = tuple[tuple[np.ndarray, ...], ...]


def known_outlines(scene: Scene) -> Polygons:
    """The outlines of a scene's buildings: its own where it has them, else those its mask suggests. Kept for the
    scene's channels, which share them."""
    if scene.polygons is not None:
        return scene.polygons
    if "_outlines" not in scene._planes:
        guess = whole_metre_outlines if scene.raster == "radiomapseer" else outlines
        scene._planes["_outlines"] = guess(scene.buildings, scene.raster_offset)
    return scene._planes["_outlines"]


def footprint(scene: Scene) -> np.ndarray:
    """`Scene.footprint` of a scene whose mask is drawn as RadioMapSeer's."""
    if scene._cut_from is not None:
        return scene.cut_from_whole(footprint(scene._cut_from[0]))
    if "_footprint" not in scene._planes:
        scene._planes["_footprint"] = rasterize(known_outlines(scene), scene.shape)
    return scene._planes["_footprint"]


def outlines(mask: np.ndarray, raster_offset: tuple[float, float] = (0.0, 0.0)) -> Polygons:
    """The outlines of the True regions of a mask, oblique walls straight again, as `Scene.polygons` has them.

    `raster_offset` is the scene's: where in the mask's pixels the map's points lie.
    """
    rings, owners = _staircases(mask)
    fine = _through_middles(rings)
    smooth = _simplified(fine, TOLERANCE)
    smooth = np.where(shapely.get_num_coordinates(smooth) > 3, smooth, fine)  # a shed of one pixel stays one
    return _polygons([shapely.get_coordinates(ring) - 0.5 - raster_offset for ring in smooth], owners)


def whole_metre_outlines(mask: np.ndarray, raster_offset: tuple[float, float]) -> Polygons:
    """The same for masks like RadioMapSeer's, whose outlines have their corners on whole metres, the corners of the
    mask's pixels: of all such outlines near the mask's own, those with few corners that give this very mask.
    """
    rings, owners = _staircases(mask)
    fine = _through_middles(rings)
    seeds = [_corners(lines) for lines in (*(_simplified(fine, tolerance) for tolerance in TOLERANCES), fine)]
    to_map, wrong = np.rint(np.add(raster_offset, 0.5)), _wrong_pixels(mask)
    return _polygons([_best_fit(wrong, tries) - to_map for tries in zip(*seeds, strict=True)], owners)


def _corners(lines: np.ndarray) -> list[np.ndarray]:
    """Each ring's corners, without the repeated last one."""
    sizes = shapely.get_num_coordinates(lines)
    ends, points = np.cumsum(sizes), shapely.get_coordinates(lines)
    return [points[start : max(end - 1, start)] for start, end in zip(ends - sizes, ends, strict=True)]


def _best_fit(wrong: tuple[np.ndarray, np.ndarray], tries: tuple[np.ndarray, ...]) -> np.ndarray:
    """The cheapest outline that one of the simplified ones leads to when its corners are moved to whole pixels."""
    best, least, seen = np.empty((0, 2)), np.inf, 0
    for seed in tries:
        if len(seed) == seen or len(seed) < 3:
            continue
        seen = len(seed)
        if CORNER * seen >= least:
            break
        ring, cost = _snap(wrong, seed)
        if cost + CORNER * seen < least:
            best, least = ring, cost + CORNER * seen
    return np.vstack([best, best[:1]])


def _wrong_pixels(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many of the two pixels on either side of a piece of wall, one pixel long, the mask has on the wrong side.

    The first array is of flat pieces, `[far, k, j + BEYOND]` of the one across column k with row j beyond it, which is
    to be covered where `far` is 1; the second is of steep ones across row k with column j beyond.
    """

    def of(lines: np.ndarray) -> np.ndarray:
        covered = np.pad(lines.astype(np.uint8), ((0, 0), (BEYOND + 2, BEYOND + 2)))
        free = np.pad(1 - lines.astype(np.uint8), ((0, 0), (BEYOND + 2, BEYOND + 2)))
        return np.stack(
            [
                before[:, :-4] + before[:, 1:-3] + beyond[:, 2:-2] + beyond[:, 3:-1]
                for before, beyond in ((free, covered), (covered, free))
            ]
        )

    return of(np.ascontiguousarray(mask.T)), of(np.ascontiguousarray(mask))


def _staircases(mask: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """The borders of a mask's regions along the sides of its pixels, which span whole numbers here, each with the
    region it belongs to. Of a region the outside comes first, then its holes."""
    regions, _ = label(mask)
    x, y, starts = _trace(mask)
    rings = [np.column_stack((x[a:b], y[a:b])) for a, b in zip(starts[:-1], starts[1:], strict=True)]
    return rings, [int(regions[ring[0, 1], ring[0, 0]]) for ring in rings]


def _through_middles(rings: list[np.ndarray]) -> np.ndarray:
    """Rings through the middle of every pixel's side, so that staircases average out to their wall.

    Where a ring begins it keeps a corner when it is simplified. Near its middle, along a wall, the wall can lie on
    that one; of a small building it is a true corner, for there is no room for another.
    """
    if not rings:
        return np.array([], object)
    sizes = np.array([len(ring) for ring in rings])
    points = np.concatenate(rings)
    middles = (points + points[following(sizes)]) / 2
    return shapely.linearrings(_begun(middles, sizes), indices=np.repeat(np.arange(len(rings)), sizes))


def _simplified(rings: np.ndarray, tolerance: float) -> np.ndarray:
    return shapely.simplify(rings, tolerance, preserve_topology=False)


def _polygons(rings: list[np.ndarray], owners: list[int]) -> Polygons:
    found: dict[int, list[np.ndarray]] = {}
    for ring, owner in zip(rings, owners, strict=True):
        if len(ring) > 3:
            found.setdefault(owner, []).append(ring)
    return tuple(tuple(parts) for parts in found.values())


@njit(cache=True, nogil=True)
def _trace(mask: np.ndarray):
    """Corners of all borders, and where in them each begins. The covered side is on the right of the way (y down), and
    pixels that touch by a corner only are apart."""
    height, width = mask.shape
    inside = np.zeros((height + 2, width + 2), np.bool_)
    inside[1:-1, 1:-1] = mask
    walked = np.zeros((height + 2, width + 2), np.bool_)  # upper sides
    xs, ys = [0], [0]
    xs.pop(), ys.pop()
    starts = [0]
    for row in range(1, height + 1):
        for column in range(1, width + 1):
            if not inside[row, column] or inside[row - 1, column] or walked[row, column]:
                continue
            x, y, dx, dy = column, row, 1, 0
            while dx != 1 or not walked[y, x]:
                if dx == 1:
                    walked[y, x] = True
                xs.append(x - 1)
                ys.append(y - 1)
                x, y = x + dx, y + dy
                # the pixels ahead, on the right and on the left
                ahead_y, ahead_x = y + (dy - 1) // 2, x + (dx - 1) // 2
                if dx != 0:
                    right_y, left_y = (y, y - 1) if dx > 0 else (y - 1, y)
                    right, left = inside[right_y, ahead_x], inside[left_y, ahead_x]
                else:
                    right_x, left_x = (x - 1, x) if dy > 0 else (x, x - 1)
                    right, left = inside[ahead_y, right_x], inside[ahead_y, left_x]
                if not right:
                    dx, dy = -dy, dx
                elif left:
                    dx, dy = dy, -dx
            starts.append(len(xs))
    return np.array(xs), np.array(ys), np.array(starts)


@njit(cache=True, nogil=True)
def _begun(points: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Rings of `sizes` points, each turned to begin near its middle, or farthest from it if it is small."""
    turned, start = np.empty_like(points), 0
    for size in sizes:
        x = y = 0.0
        for px, py in points[start : start + size]:
            x, y = x + px, y + py
        first, least = 0, np.inf
        for i in range(size):
            out = (points[start + i, 0] - x / size) ** 2 + (points[start + i, 1] - y / size) ** 2
            if size < SMALL:
                out = -out
            if out < least:
                first, least = i, out
        for i in range(size):
            turned[start + i] = points[start + (first + i) % size]
        start += size
    return turned


@njit(cache=True, nogil=True)
def _snap(wrong: tuple[np.ndarray, np.ndarray], seed: np.ndarray):
    """Every corner on the best of the nine whole pixels round it, all at once (a Viterbi search round the ring); the
    ring and its cost."""
    corners, choices = len(seed), 9
    place = np.empty((corners, choices, 2), np.int64)
    for i in range(corners):
        for k in range(choices):
            place[i, k, 0] = int(math.floor(seed[i, 0] + 0.5)) + k // 3 - 1
            place[i, k, 1] = int(math.floor(seed[i, 1] + 0.5)) + k % 3 - 1
    cost = np.empty((corners, choices, choices))
    for i in range(corners):
        ahead = place[(i + 1) % corners]
        for a in range(choices):
            for b in range(choices):
                cost[i, a, b] = _wall_cost(wrong, place[i, a, 0], place[i, a, 1], ahead[b, 0], ahead[b, 1])

    value = np.full((corners + 1, choices, choices), np.inf)  # of the way from each choice of the first corner
    for k in range(choices):
        value[0, k, k] = 0.0
    for i in range(corners):
        for a in range(choices):
            for b in range(choices):
                for first in range(choices):
                    value[i + 1, b, first] = min(value[i + 1, b, first], value[i, a, first] + cost[i, a, b])
    best = 0
    for first in range(choices):
        if value[corners, first, first] < value[corners, best, best]:
            best = first
    chosen, k = np.zeros(corners, np.int64), best
    for i in range(corners - 1, -1, -1):
        a = 0  # one of the choices gave the least value, by this very sum
        while value[i, a, best] + cost[i, a, k] > value[i + 1, k, best]:
            a += 1
        chosen[i] = k = a
    ring = np.empty((corners, 2))
    for i in range(corners):
        ring[i] = place[i, chosen[i]]
    return ring, value[corners, best, best]


@njit(cache=True, nogil=True)
def _wall_cost(wrong: tuple[np.ndarray, np.ndarray], ax: int, ay: int, bx: int, by: int) -> float:
    """What a wall's pieces have wrong, see `_wrong_pixels`, and how far it is off the staircase."""
    if ax == bx and ay == by:
        return 1e3
    dx, dy = bx - ax, by - ay
    flat = abs(dx) >= abs(dy)
    run, rise, start, level = (dx, dy, ax, ay) if flat else (dy, dx, ay, ax)
    # the covered side is on the right: below a wall that runs right, left of one that runs down
    pieces = wrong[0 if flat else 1][1 if (run > 0) == flat else 0]
    along, places = pieces.shape
    count, spread = 0, 0.0
    for k in range(max(min(start, start + run), 0), min(max(start, start + run), along)):
        crossing = level + (k + 0.5 - start) * rise / run + NUDGE
        beyond = int(math.ceil(crossing - 0.5))  # the first pixel whose centre lies beyond the wall
        spread += (crossing - beyond) ** 2
        if -BEYOND <= beyond < places - BEYOND:
            count += pieces[k, beyond + BEYOND]
    return count + SPREAD * spread

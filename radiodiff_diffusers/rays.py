"""Rays over a raster: how much building lies between the transmitter and each pixel, and the way round.

Compiled with numba, single-threaded and without the GIL, so that data loader workers and threads may call it freely.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from numba import njit

from .geometry import RADIOMAPSEER_MASK_OFFSET, rasterize
from .scene import RADIOMAPSEER_RASTER_OFFSET, Scene

# The dominant-path engine's laws: dB a decade in line of sight and behind corners, dB a corner and a degree of turn.
LINE_OF_SIGHT_EXPONENT = 25.0
EXPONENT = 28.0
CORNER = 2.26
PER_DEGREE = 0.154
LARGEST_TURN = 70.0
ROOF_DROP = 3.5  # metres below the buildings' height at which ways cross roofs

# Pixels of obstacle in a row that a path may cut off a corner: oblique walls are staircases on a raster, and every
# stair would else count as a corner. Below 1, so that no path passes through a wall one pixel thick.
CUT_CORNER = 0.9
ROOF_EDGE = (
    1.5  # pixels between a roof's outermost pixel and its wall: from there both the roof and the ground are seen
)
ROOF, NO_WAY = 1, 2  # what a pixel may be, beside free ground (0)
TRANSMITTER = -1
GRAZE = 1e-6  # pixels of obstacle that still count as none
# Exact rays cost pixels x length. Above this side they are cast to the border once and read off between (see
# `_cast_to_border`).
LARGEST_EXACT_SIDE = 1024


def obstructed_metres(scene: Scene) -> np.ndarray:
    """(H, W) metres of obstacle on the straight ray from the transmitter to each pixel's centre; 0 is line of sight.

    Exact on the raster up to 1024 pixels a side. Larger scenes are read off rays to every half pixel of the border,
    whose cost grows with the pixels alone; shadow edges are then true to about half a pixel.
    """
    return _straight_rays(scene)[0]


def detour(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Approximate dominant path to each pixel: its loss in dB beyond 1 m, and the part of it lost in turns; both (H,
    W).

    The search and the laws are the dominant-path engine's, round corners and over roofs, but walls are the raster's:
    it needs no outlines, costs a fraction of the engine, and is true to a decibel or two. A hint for networks, not a
    map. Inside obstacles it reads infinite and 0.
    """
    memory = scene._planes
    if "_detour" not in memory:
        x, y = scene.require_transmitter("a detour channel")
        blocked, offset = _walls(scene)
        tall = scene.building_height > max(scene.transmitter_height, scene.receiver_height)
        obstacle = scene.obstacles.astype(np.uint8) * NO_WAY
        obstacle[scene.obstacles & scene.buildings] = ROOF if tall else NO_WAY
        climb = scene.transmitter_height - scene.receiver_height
        rise = max(scene.building_height - ROOF_DROP - scene.receiver_height, 0.0)
        lit = _straight_rays(scene)[1] <= CUT_CORNER
        memory["_detour"] = _run_front(blocked, obstacle, lit, x, y, *offset, scene.metres_per_pixel, climb, rise)
    return memory["_detour"]


def _straight_rays(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Metres of obstacle on every straight ray from the transmitter, and pixels of its longest blocked stretch."""
    memory = scene._planes
    if "_rays" not in memory:
        x, y = scene.require_transmitter("a ray channel")
        cast = _cast_exactly if max(scene.shape) <= LARGEST_EXACT_SIDE else _cast_to_border
        blocked, offset = _walls(scene)
        covered, longest = cast(blocked, x, y, *offset)
        memory["_rays"] = covered * np.float32(scene.metres_per_pixel), longest
    return memory["_rays"]


def _walls(scene: Scene) -> tuple[np.ndarray, tuple[float, float]]:
    """The raster that rays run through, and where in its pixels the map's points lie.

    A wall on whole metres runs through the centres of pixels, and a raster at the centres puts it half a pixel off.
    Where the outlines are known they are drawn as RadioMapSeer's masks are, so that such walls lie on the pixels'
    borders.
    """
    if scene.polygons is None:
        return scene.obstacles, scene.raster_offset
    walls = rasterize(scene.polygons, scene.shape, RADIOMAPSEER_MASK_OFFSET)
    if scene.cars is not None:
        walls |= scene.cars
    if scene.transmitter_pixel is not None:
        walls[scene.transmitter_pixel] = False
    return walls, RADIOMAPSEER_RASTER_OFFSET


@njit(cache=True, nogil=True)
def _cast_exactly(blocked: np.ndarray, x0: float, y0: float, ox: float, oy: float) -> tuple[np.ndarray, np.ndarray]:
    """For every pixel the obstacle on its straight ray, in all and in the longest stretch; both in pixels.

    (ox, oy) leads from the centre of an obstacle's pixel to the point that the map gives the gain for.
    """
    height, width = blocked.shape
    covered = np.empty((height, width), np.float32)
    longest = np.empty((height, width), np.float32)
    for row in range(height):
        for column in range(width):
            covered[row, column], _, longest[row, column] = _along(blocked, x0 + ox, y0 + oy, column + ox, row + oy)
    return covered, longest


@njit(cache=True, nogil=True, inline="always")
def _along(blocked: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float]:
    """Pixels of the segment that are blocked, that lie before the first blocked one, and of its longest blocked
    stretch.

    Pixel (c, r) covers c - 0.5 .. c + 0.5 and r - 0.5 .. r + 0.5; the segment is cut at every border it crosses.
    """
    height, width = blocked.shape
    dx, dy = x1 - x0, y1 - y0
    length = math.sqrt(dx * dx + dy * dy)
    column, row = int(math.floor(x0 + 0.5)), int(math.floor(y0 + 0.5))
    last_column, last_row = int(math.floor(x1 + 0.5)), int(math.floor(y1 + 0.5))
    step_x, step_y = (1 if dx > 0 else -1), (1 if dy > 0 else -1)
    per_x = 1.0 / abs(dx) if dx != 0 else math.inf
    per_y = 1.0 / abs(dy) if dy != 0 else math.inf
    # the share of the way at which the ray crosses its next vertical and its next horizontal border
    next_x = ((column + 0.5 * step_x) - x0) * step_x * per_x if dx != 0 else math.inf
    next_y = ((row + 0.5 * step_y) - y0) * step_y * per_y if dy != 0 else math.inf
    at, covered, first, stretch, longest = 0.0, 0.0, 1.0, 0.0, 0.0
    for _ in range(abs(last_column - column) + abs(last_row - row) + 1):
        leave = min(next_x, next_y, 1.0)
        if 0 <= row < height and 0 <= column < width and blocked[row, column]:
            covered += leave - at
            stretch += leave - at
            longest = max(longest, stretch)
            first = min(first, at)
        else:
            stretch = 0.0
        if leave >= 1.0:
            break
        at = leave
        if next_x < next_y:
            column += step_x
            next_x += per_x
        elif next_y < next_x:
            row += step_y
            next_y += per_y
        else:  # exactly through a corner: into the pixel opposite, touching neither neighbour
            column += step_x
            row += step_y
            next_x += per_x
            next_y += per_y
    covered *= length
    if covered <= GRAZE:
        return 0.0, length, 0.0
    return covered, first * length, longest * length


@njit(cache=True, nogil=True)
def _cast_to_border(blocked: np.ndarray, x0: float, y0: float, ox: float, oy: float) -> tuple[np.ndarray, np.ndarray]:
    """As `_cast_exactly`, from rays to every half pixel of a square round the map, each walked once from the
    transmitter out.
    """
    height, width = blocked.shape
    covered = np.zeros((height, width), np.float32)
    longest = np.zeros((height, width), np.float32)
    reach = max(x0, y0, width - 1 - x0, height - 1 - y0) + 1.0
    for side in range(4):
        for k in range(-int(2 * reach) - 1, int(2 * reach) + 2):
            slope = k / (2.0 * reach)  # pixels sideways for each pixel ahead, -1 .. 1
            step = math.sqrt(1.0 + slope * slope)
            inside, stretch, most = 0.0, 0.0, 0.0
            for ahead in range(int(reach) + 1):
                sideways = slope * ahead
                if side == 0:
                    x, y = x0 + ahead, y0 + sideways
                elif side == 1:
                    x, y = x0 - ahead, y0 + sideways
                elif side == 2:
                    x, y = x0 + sideways, y0 + ahead
                else:
                    x, y = x0 + sideways, y0 - ahead
                column, row = int(math.floor(x + 0.5)), int(math.floor(y + 0.5))
                if not (0 <= row < height and 0 <= column < width):
                    if ahead > 0:
                        break
                    continue
                under_column, under_row = int(math.floor(x + ox + 0.5)), int(math.floor(y + oy + 0.5))
                inner = 0 <= under_row < height and 0 <= under_column < width
                hit = inner and blocked[under_row, under_column]
                stretch = stretch + step if hit else 0.0
                inside += step if hit else 0.0
                most = max(most, stretch)
                covered[row, column] = inside
                longest[row, column] = most
    return covered, longest


# The way round and over --------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _turn_loss(ax: float, ay: float, az: float, bx: float, by: float, bz: float) -> float:
    """dB for turning from direction a into direction b."""
    cx, cy, cz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    turn = math.degrees(math.atan2(math.sqrt(cx * cx + cy * cy + cz * cz), ax * bx + ay * by + az * bz))
    return CORNER + PER_DEGREE * min(turn, LARGEST_TURN)


@njit(cache=True, nogil=True)
def _sees(blocked: np.ndarray, x0: float, y0: float, from_roof: bool, x1: float, y1: float, to_roof: bool) -> bool:
    """Whether nothing stands between two pixels; a roof's edge is seen from the ground in front of it, and sees it."""
    if from_roof and to_roof:
        return True  # all roofs are equally high
    if to_roof:
        return math.hypot(x1 - x0, y1 - y0) - _along(blocked, x0, y0, x1, y1)[1] <= ROOF_EDGE
    if from_roof:
        return math.hypot(x1 - x0, y1 - y0) - _along(blocked, x1, y1, x0, y0)[1] <= ROOF_EDGE
    return _along(blocked, x0, y0, x1, y1)[2] <= CUT_CORNER


@njit(cache=True, nogil=True)
def _run_front(
    blocked: np.ndarray,
    obstacle: np.ndarray,
    lit: np.ndarray,
    x0: float,
    y0: float,
    ox: float,
    oy: float,
    metres: float,
    climb: float,
    rise: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Loss on free pixels, and its part in turns: a front over the pixels, least loss first, one way a pixel.

    Each pixel remembers where its way last turned. A neighbour takes over that point where it sees it, and turns at
    the pixel itself where it does not. `rise` is how high roofs are above the receivers, `climb` the transmitter above
    them.
    """
    height, width = blocked.shape
    count = height * width
    loss = np.full(count, np.inf)
    corner = np.full(count, TRANSMITTER, np.int32)  # pixel of the last turn
    settled = np.zeros(count, np.bool_)
    # of the way to a settled pixel: its length, dB of its turns, and the direction it arrives in (metres)
    length, turned = np.zeros(count), np.zeros(count)
    arrive_x, arrive_y, arrive_z = np.zeros(count), np.zeros(count), np.zeros(count)

    front = [(0.0, 0)]
    front.clear()
    for row in range(height):
        for column in range(width):
            if lit[row, column] and obstacle[row, column] == 0:
                here = row * width + column
                arrive_x[here], arrive_y[here], arrive_z[here] = (column - x0) * metres, (row - y0) * metres, -climb
                length[here] = math.sqrt(arrive_x[here] ** 2 + arrive_y[here] ** 2 + climb * climb)
                loss[here] = LINE_OF_SIGHT_EXPONENT * math.log10(max(length[here], 1.0))
                settled[here] = True
    for row in range(height):  # of the lit pixels, only those beside a shadow or a wall can send the front on
        for column in range(width):
            here = row * width + column
            if settled[here]:
                for r in range(max(row - 1, 0), min(row + 2, height)):
                    for c in range(max(column - 1, 0), min(column + 2, width)):
                        if not settled[r * width + c] and obstacle[r, c] != NO_WAY and settled[here]:
                            heapq.heappush(front, (loss[here], here))
                            settled[here] = False  # once is enough; it settles again when the front takes it
    while len(front) > 0:
        here = heapq.heappop(front)[1]
        if settled[here]:
            continue
        settled[here] = True
        row, column = here // width, here % width
        on_roof = obstacle[row, column] == ROOF
        last = corner[here]
        last_on_roof = False
        lx, ly, lz, last_length, last_turned = x0, y0, climb, 0.0, 0.0
        if last != TRANSMITTER:
            lx, ly, last_length, last_turned = float(last % width), float(last // width), length[last], turned[last]
            last_on_roof = obstacle[last // width, last % width] == ROOF
            lz = rise if last_on_roof else 0.0
        ax, ay, az = (column - lx) * metres, (row - ly) * metres, (rise if on_roof else 0.0) - lz
        arrive_x[here], arrive_y[here], arrive_z[here] = ax, ay, az
        length[here] = last_length + math.sqrt(ax * ax + ay * ay + az * az)
        turned[here] = last_turned
        if last != TRANSMITTER:
            turned[here] += _turn_loss(arrive_x[last], arrive_y[last], arrive_z[last], ax, ay, az)
        for r in range(max(row - 1, 0), min(row + 2, height)):
            for c in range(max(column - 1, 0), min(column + 2, width)):
                there = r * width + c
                if settled[there] or obstacle[r, c] == NO_WAY:
                    continue
                to_roof = obstacle[r, c] == ROOF
                source, sx, sy, sz, far, turns = last, lx, ly, lz, last_length, last_turned
                source_on_roof = last_on_roof
                if to_roof and last_on_roof:  # from roof to roof an earlier turn on a roof is seen as well
                    while (
                        corner[source] != TRANSMITTER
                        and obstacle[corner[source] // width, corner[source] % width] == ROOF
                    ):
                        source = corner[source]
                    sx, sy, far, turns = float(source % width), float(source // width), length[source], turned[source]
                z = rise if to_roof else 0.0
                dx, dy, dz = (c - sx) * metres, (r - sy) * metres, z - sz
                far += math.sqrt(dx * dx + dy * dy + dz * dz)
                if source == TRANSMITTER:
                    total = (EXPONENT if to_roof else LINE_OF_SIGHT_EXPONENT) * math.log10(max(far, 1.0))
                else:
                    turns += _turn_loss(arrive_x[source], arrive_y[source], arrive_z[source], dx, dy, dz)
                    total = EXPONENT * math.log10(max(far, 1.0)) + turns
                if total >= loss[there]:
                    continue
                if source == TRANSMITTER and not to_roof:
                    seen = lit[r, c]
                else:
                    seen = _sees(blocked, sx + ox, sy + oy, source_on_roof, c + ox, r + oy, to_roof)
                if not seen:
                    if ax == 0.0 and ay == 0.0:
                        continue
                    source = here
                    dx, dy, dz = (c - column) * metres, (r - row) * metres, z - (rise if on_roof else 0.0)
                    far = length[here] + math.sqrt(dx * dx + dy * dy + dz * dz)
                    total = EXPONENT * math.log10(max(far, 1.0)) + turned[here] + _turn_loss(ax, ay, az, dx, dy, dz)
                    if total >= loss[there]:
                        continue
                loss[there] = total
                corner[there] = source
                heapq.heappush(front, (total, there))
    for row in range(height):
        for column in range(width):
            if obstacle[row, column] != 0:
                loss[row * width + column] = math.inf
                turned[row * width + column] = 0.0
    return loss.reshape(height, width).astype(np.float32), turned.reshape(height, width).astype(np.float32)


@njit(cache=True, nogil=True)
def through_walls(walls: np.ndarray, x0: float, y0: float, most_walls: int) -> np.ndarray:
    """Loss in walls from (x0, y0) to each pixel's centre, through exactly the pixels that the straight line
    crosses.
    """
    height, width = walls.shape
    loss = np.zeros((height, width), np.float32)
    start_column, start_row = int(math.floor(x0 + 0.5)), int(math.floor(y0 + 0.5))
    for end_row in range(height):
        for end_column in range(width):
            dx, dy = end_column - x0, end_row - y0
            step_x, step_y = (1 if dx > 0 else -1), (1 if dy > 0 else -1)
            per_x = 1.0 / abs(dx) if dx != 0 else math.inf
            per_y = 1.0 / abs(dy) if dy != 0 else math.inf
            column, row = start_column, start_row
            # the share of the way at which the line crosses its next vertical and its next horizontal pixel border
            next_x = ((column + 0.5 * step_x) - x0) * step_x * per_x if dx != 0 else math.inf
            next_y = ((row + 0.5 * step_y) - y0) * step_y * per_y if dy != 0 else math.inf
            total, count, before = np.float32(0.0), 0, np.float32(0.0)
            for _ in range(abs(end_column - column) + abs(end_row - row) + 1):
                if 0 <= row < height and 0 <= column < width:
                    here = walls[row, column]
                    if before > 0 and here == 0:
                        total += before
                        count += 1
                        if count == most_walls:
                            break
                    before = here
                if min(next_x, next_y) >= 1.0:
                    break
                if next_x < next_y:
                    column += step_x
                    next_x += per_x
                elif next_y < next_x:
                    row += step_y
                    next_y += per_y
                else:  # exactly through a corner
                    column += step_x
                    row += step_y
                    next_x += per_x
                    next_y += per_y
            loss[end_row, end_column] = total
    return loss

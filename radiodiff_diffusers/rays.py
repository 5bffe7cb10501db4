"""Rays over a raster: how much building lies between the transmitter and each pixel, and the way round.

Compiled with numba, single-threaded and without the GIL, so that data loader workers and threads may call it freely.
"""

from __future__ import annotations

import heapq
import math

import numpy as np
from numba import njit

from .scene import Scene


# The dominant-path engine's laws: dB a decade in line of sight and behind corners, dB a corner and a degree of turn.
LINE_OF_SIGHT_EXPONENT = 25.0
EXPONENT = 28.0
CORNER = 2.085
PER_DEGREE = 0.1545
LARGEST_TURN = 70.0
ROOF = 2.0  # dB more over the roofs than round two corners of the same turns

# Pixels of obstacle that a path may cut off a corner: oblique walls are staircases on a raster, and every stair would else
# count as a corner. Below 1, so that no path passes through a wall one pixel thick.
CUT_CORNER = 0.9
GRAZE = 1e-6  # pixels of obstacle that still count as none
# Exact rays cost pixels x length. Above this side they are cast to the border once and read off between (see `_cast_to_border`).
LARGEST_EXACT_SIDE = 1024


def obstructed_metres(scene: Scene) -> np.ndarray:
    """(H, W) metres of obstacle on the straight ray from the transmitter to each pixel's centre; 0 is line of sight.

    Exact on the raster up to 1024 pixels a side. Larger scenes are read off rays to every half pixel of the border, whose
    cost grows with the pixels alone; shadow edges are then true to about half a pixel.
    """
    return _straight_rays(scene)[0]


def detour(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Approximate dominant path to each pixel: its loss in dB beyond 1 m, and the degrees it turns in all; both (H, W).

    The search and the laws are the dominant-path engine's, but walls are the raster's, so it costs a fraction of the engine
    and is true to a few dB: a hint for networks, not a map. Pixels that no path reaches
    (inside buildings, closed courtyards) read over the roofs.
    """
    memory = scene._planes
    if "_detour" not in memory:
        x, y = scene.require_transmitter("a detour channel")
        covered, first, last = _straight_rays(scene)
        metres = scene.metres_per_pixel
        loss, turn = _round_corners(scene.obstacles, covered <= 0, x, y, metres)
        roof, climb = _over_roofs(scene, first * metres, last * metres)
        over = (covered > 0) & (roof < loss)
        memory["_detour"] = np.where(over, roof, loss), np.where(over, climb, turn)
    return memory["_detour"]


def distance_metres(scene: Scene) -> np.ndarray:
    """(H, W) metres from the transmitter to each pixel's centre, along the ground."""
    x, y = scene.require_transmitter("a distance channel")
    height, width = scene.shape
    across = (np.arange(width, dtype=np.float32) - np.float32(x)) ** 2
    down = (np.arange(height, dtype=np.float32) - np.float32(y)) ** 2
    return np.sqrt(across[None, :] + down[:, None]) * np.float32(scene.metres_per_pixel)


def _straight_rays(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Metres inside obstacles, pixels before the first and pixels after the last of them, for every straight ray."""
    memory = scene._planes
    if "_rays" not in memory:
        x, y = scene.require_transmitter("a ray channel")
        cast = _cast_exactly if max(scene.shape) <= LARGEST_EXACT_SIDE else _cast_to_border
        covered, first, last = cast(scene.obstacles, x, y)
        memory["_rays"] = covered * np.float32(scene.metres_per_pixel), first, last
    return memory["_rays"]


def _over_roofs(scene: Scene, before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss and turn of the way up at the first wall, straight over, and down at the last; distances in metres."""
    climb = scene.building_height - scene.receiver_height
    between = np.maximum(distance_metres(scene) - before - after, 0.0)
    length = np.hypot(before, climb) + between + np.hypot(after, climb)
    up, down = np.degrees(np.arctan2(climb, before)), np.degrees(np.arctan2(climb, after))
    turns = 2 * CORNER + ROOF + PER_DEGREE * (np.minimum(up, LARGEST_TURN) + np.minimum(down, LARGEST_TURN))
    loss = EXPONENT * np.log10(np.maximum(length, 1.0)) + turns
    return loss.astype(np.float32), (up + down).astype(np.float32)


@njit(cache=True, nogil=True)
def _cast_exactly(blocked: np.ndarray, x0: float, y0: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = blocked.shape
    covered = np.empty((height, width), np.float32)
    first = np.empty((height, width), np.float32)
    last = np.empty((height, width), np.float32)
    for row in range(height):
        for column in range(width):
            covered[row, column], first[row, column], last[row, column] = _along(blocked, x0, y0, float(column), float(row))
    return covered, first, last


@njit(cache=True, nogil=True, inline="always")
def _along(blocked: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float]:
    """Pixels of the segment that are blocked, that lie before the first blocked one, and after the last one.

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
    at, covered, first, last = 0.0, 0.0, 1.0, 0.0
    for _ in range(abs(last_column - column) + abs(last_row - row) + 1):
        leave = min(next_x, next_y, 1.0)
        if 0 <= row < height and 0 <= column < width and blocked[row, column]:
            covered += leave - at
            first = min(first, at)
            last = leave
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
    return covered, first * length, (1.0 - last) * length


@njit(cache=True, nogil=True)
def _is_clear(blocked: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> bool:
    return _along(blocked, x0, y0, x1, y1)[0] <= CUT_CORNER


@njit(cache=True, nogil=True)
def _cast_to_border(blocked: np.ndarray, x0: float, y0: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_cast_exactly`, from rays to every half pixel of a square round the map, each walked once from the transmitter out."""
    height, width = blocked.shape
    covered = np.zeros((height, width), np.float32)
    first = np.zeros((height, width), np.float32)
    last = np.zeros((height, width), np.float32)
    reach = max(x0, y0, width - 1 - x0, height - 1 - y0) + 1.0
    for side in range(4):
        for k in range(-int(2 * reach) - 1, int(2 * reach) + 2):
            slope = k / (2.0 * reach)  # pixels sideways for each pixel ahead, -1 .. 1
            stretch = math.sqrt(1.0 + slope * slope)
            inside, began, ended = 0.0, -1.0, 0.0
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
                walked = ahead * stretch
                if blocked[row, column]:
                    inside += stretch
                    if began < 0:
                        began = walked
                    ended = walked
                covered[row, column] = inside
                first[row, column] = began if began >= 0 else walked
                last[row, column] = walked - ended if began >= 0 else 0.0
    return covered, first, last


# Round corners -----------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _corner_loss(turn: float) -> float:
    return CORNER + PER_DEGREE * min(turn, LARGEST_TURN)


@njit(cache=True, nogil=True)
def _round_corners(
    blocked: np.ndarray, lit: np.ndarray, x0: float, y0: float, metres: float
) -> tuple[np.ndarray, np.ndarray]:
    """Least-loss paths by Dijkstra over pixels, each of which remembers the last corner its path turned at.

    A pixel's neighbour is reached from that corner where it sees it, else round the pixel itself (any-angle search in the
    manner of Theta*).
    """
    height, width = blocked.shape
    count = height * width
    corner = np.full(count, -1, np.int32)  # pixel index of the last turn; -1 is the transmitter
    length = np.full(count, np.inf, np.float32)  # pixels walked
    corners = np.zeros(count, np.float32)  # dB of all turns so far
    turned = np.zeros(count, np.float32)  # degrees
    cost = np.full(count, np.inf, np.float32)
    closed = np.zeros(count, np.bool_)
    expanded = np.zeros(count, np.bool_)
    heap = [(np.float32(0.0), np.int32(0))]
    heap.clear()
    for row in range(height):
        for column in range(width):
            here = row * width + column
            if blocked[row, column]:
                closed[here] = True
            elif lit[row, column]:
                closed[here] = True
                length[here] = math.sqrt((column - x0) ** 2 + (row - y0) ** 2)
                cost[here] = LINE_OF_SIGHT_EXPONENT * math.log10(max(length[here] * metres, 1.0))
    for row in range(height):  # only the lit pixels beside a shadow can start a path into it
        for column in range(width):
            here = row * width + column
            if not blocked[row, column] and lit[row, column]:
                for dr in range(-1, 2):
                    for dc in range(-1, 2):
                        r, c = row + dr, column + dc
                        if 0 <= r < height and 0 <= c < width and not closed[r * width + c]:
                            heapq.heappush(heap, (cost[here], np.int32(here)))
                            break
                    else:
                        continue
                    break
    while len(heap) > 0:
        here = heapq.heappop(heap)[1]
        if expanded[here]:
            continue
        expanded[here] = closed[here] = True
        row, column = here // width, here % width
        for dr in range(-1, 2):
            for dc in range(-1, 2):
                r, c = row + dr, column + dc
                if not (0 <= r < height and 0 <= c < width):
                    continue
                there = r * width + c
                if closed[there]:
                    continue
                last = corner[here]
                seen = last >= 0 and _is_clear(blocked, last % width, last // width, c, r)
                if not seen:
                    last = here
                # the turn at `last`, from the corner before it
                before = corner[last]
                bx = x0 if before < 0 else float(before % width)
                by = y0 if before < 0 else float(before // width)
                ax, ay = last % width - bx, last // width - by
                ox, oy = c - last % width, r - last // width
                turn = abs(math.degrees(math.atan2(ax * oy - ay * ox, ax * ox + ay * oy)))
                far = length[last] + math.sqrt(ox * ox + oy * oy)
                turns = corners[last] + _corner_loss(turn)
                total = np.float32(EXPONENT * math.log10(max(far * metres, 1.0)) + turns)
                if total < cost[there]:
                    cost[there] = total
                    corner[there] = last
                    length[there] = far
                    corners[there] = turns
                    turned[there] = turned[last] + turn
                    heapq.heappush(heap, (total, np.int32(there)))
    return cost.reshape(height, width), turned.reshape(height, width)

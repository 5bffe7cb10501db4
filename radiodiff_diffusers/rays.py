"""Rays over a raster: how much building lies between the transmitter and each pixel, and the ways round.

Compiled with numba, single-threaded and without the GIL, so that data loader workers and threads may call it freely.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .geometry import RADIOMAPSEER_MASK_OFFSET, rasterize
from .scene import RADIOMAPSEER_RASTER_OFFSET, Scene

GRAZE = 1e-6  # pixels of obstacle that still count as none
# Exact rays cost pixels x length. Above this side they are cast to the border once and read off between (see
# `_cast_to_border`).
LARGEST_EXACT_SIDE = 1024
COARSE_STEP = 2  # pixels


def obstructed_metres(scene: Scene) -> np.ndarray:
    """(H, W) metres of obstacle on the straight ray from the transmitter to each pixel's centre; 0 is line of sight.

    Exact on the raster up to 1024 pixels a side. Larger scenes are read off rays to every half pixel of the border,
    whose cost grows with the pixels alone; shadow edges are then true to about half a pixel.
    """
    memory = scene._planes
    if "_rays" not in memory:
        x, y = scene.require_transmitter("a ray channel")
        cast = _cast_exactly if max(scene.shape) <= LARGEST_EXACT_SIDE else _cast_to_border
        blocked, offset = _walls(scene)
        memory["_rays"] = cast(blocked, x, y, *offset) * np.float32(scene.metres_per_pixel)
    return memory["_rays"]


def detour(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The dominant path to each pixel: its loss in dB beyond 1 m, and the part of it lost in turns; both (H, W).

    What the dominant-path engine finds with RadioMapSeer's laws, through the scene's outlines where it has them and
    through outlines made from its mask otherwise. Inside obstacles it reads infinite and 0.
    """
    from .engines.dominant_paths import PathLaws, path_losses, prepared

    memory = scene._planes
    if "_detour" not in memory:
        scene.require_transmitter("a detour channel")
        memory["_detour"] = path_losses(scene, prepared(scene), PathLaws())
    return memory["_detour"]


def coarse_detour(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The same from a search that takes every `COARSE_STEP`-th pixel in the open: exact in line of sight, read off
    between in shadow."""
    from .engines.dominant_paths import PathLaws, path_losses, prepared

    memory = scene._planes
    if "_coarse_detour" not in memory:
        scene.require_transmitter("a detour channel")
        memory["_coarse_detour"] = path_losses(scene, prepared(scene), PathLaws(), step=COARSE_STEP)
    return memory["_coarse_detour"]


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


@njit(cache=True, nogil=True, inline="always")
def _borders(start: float, way: float, pixel: int) -> tuple[int, float, float]:
    """Of a straight way along one axis, from `start` in `pixel`: which way it steps from pixel to pixel, the share of
    it that crosses a pixel, and the share at which it crosses its next border.
    """
    step = 1 if way > 0 else -1
    if way == 0:
        return step, math.inf, math.inf
    each = 1.0 / abs(way)
    return step, each, ((pixel + 0.5 * step) - start) * step * each


@njit(cache=True, nogil=True)
def _cast_exactly(blocked: np.ndarray, x0: float, y0: float, ox: float, oy: float) -> np.ndarray:
    """For every pixel the obstacle on its straight ray, in pixels.

    (ox, oy) leads from the centre of an obstacle's pixel to the point that the map gives the gain for.
    """
    height, width = blocked.shape
    covered = np.empty((height, width), np.float32)
    for row in range(height):
        for column in range(width):
            covered[row, column] = _along(blocked, x0 + ox, y0 + oy, column + ox, row + oy)
    return covered


@njit(cache=True, nogil=True, inline="always")
def _along(blocked: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> float:
    """Pixels of the segment that are blocked.

    Pixel (c, r) covers c - 0.5 .. c + 0.5 and r - 0.5 .. r + 0.5; the segment is cut at every border it crosses.
    """
    height, width = blocked.shape
    dx, dy = x1 - x0, y1 - y0
    length = math.sqrt(dx * dx + dy * dy)
    column, row = int(math.floor(x0 + 0.5)), int(math.floor(y0 + 0.5))
    last_column, last_row = int(math.floor(x1 + 0.5)), int(math.floor(y1 + 0.5))
    step_x, per_x, next_x = _borders(x0, dx, column)
    step_y, per_y, next_y = _borders(y0, dy, row)
    at, covered = 0.0, 0.0
    for _ in range(abs(last_column - column) + abs(last_row - row) + 1):
        leave = min(next_x, next_y, 1.0)
        if 0 <= row < height and 0 <= column < width and blocked[row, column]:
            covered += leave - at
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
    return covered * length if covered * length > GRAZE else 0.0


@njit(cache=True, nogil=True)
def _cast_to_border(blocked: np.ndarray, x0: float, y0: float, ox: float, oy: float) -> np.ndarray:
    """As `_cast_exactly`, from rays to every half pixel of a square round the map, each walked once from the
    transmitter out.
    """
    height, width = blocked.shape
    covered = np.zeros((height, width), np.float32)
    reach = max(x0, y0, width - 1 - x0, height - 1 - y0) + 1.0
    for side in range(4):
        for k in range(-int(2 * reach) - 1, int(2 * reach) + 2):
            slope = k / (2.0 * reach)  # pixels sideways for each pixel ahead, -1 .. 1
            step = math.sqrt(1.0 + slope * slope)
            inside = 0.0
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
                inside += step if hit else 0.0
                covered[row, column] = inside
    return covered


# Indoors ------------------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def through_walls(walls: np.ndarray, x0: float, y0: float, most_walls: int) -> np.ndarray:
    """Loss in walls from (x0, y0) to each pixel's centre, through exactly the pixels that the straight line
    crosses.
    """
    height, width = walls.shape
    loss = np.zeros((height, width), np.float32)
    if most_walls < 1:
        return loss
    start_column, start_row = int(math.floor(x0 + 0.5)), int(math.floor(y0 + 0.5))
    for end_row in range(height):
        for end_column in range(width):
            dx, dy = end_column - x0, end_row - y0
            column, row = start_column, start_row
            step_x, per_x, next_x = _borders(x0, dx, column)
            step_y, per_y, next_y = _borders(y0, dy, row)
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

"""Round a search that takes only some of the pixels: which, and how the others are read off between them."""

from __future__ import annotations

import numpy as np
from numba import njit

GRAZE = 0.02  # pixels, as in wavefront.py


@njit(cache=True, nogil=True)
def choose_pixels(obstacle, x, y, step):
    """The pixels that a search with this step takes: every so many in the open, and all of a band (`step` pixels to
    each side) along walls and roofs' edges and round the transmitter, where ways turn and lanes are narrow. The band
    holds pixels of the grid, so that the front gets from one to the other."""
    height, width = obstacle.shape
    chosen = np.zeros((height, width), np.bool_)
    chosen[::step, ::step] = True
    wide = max(step - 1, 1)
    top, left = int(np.floor(y)), int(np.floor(x))
    chosen[max(top - step, 0) : top + step + 2, max(left - step, 0) : left + step + 2] = True
    for row in range(height):
        for column in range(width):
            here = obstacle[row, column]
            beside = column + 1 < width and obstacle[row, column + 1] != here
            below = row + 1 < height and obstacle[row + 1, column] != here
            if beside or below:
                bottom, right = row + wide + 1 + below, column + wide + 1 + beside
                chosen[max(row - wide, 0) : bottom, max(column - wide, 0) : right] = True
    return chosen


@njit(cache=True, nogil=True)
def mark_sight(x, y, home, points, triangles, neighbours, seen):
    """Mark in `seen` the pixels in line of sight of (x, y) in triangle `home`.

    A cone of sight runs through each of the triangle's sides into the next triangle, where the far corner splits it,
    and so on until walls have taken all of it; what a cone covers of a triangle is seen.
    """
    stack = [(home, -1, 0.0, 0.0, 0.0, 0.0)]
    while len(stack) > 0:
        t, entered, low_x, low_y, high_x, high_y = stack.pop()
        _mark(x, y, points, triangles[t], entered >= 0, low_x, low_y, high_x, high_y, seen)
        for side in range(3):
            following = neighbours[t, side]
            if following < 0 or side == entered:
                continue
            a, b = points[triangles[t, side]], points[triangles[t, (side + 1) % 3]]
            lx, ly, hx, hy = a[0] - x, a[1] - y, b[0] - x, b[1] - y
            if entered >= 0:  # the part of this side that the cone meets
                if lx * low_y - ly * low_x > 0.0:
                    lx, ly = low_x, low_y
                if hx * high_y - hy * high_x < 0.0:
                    hx, hy = high_x, high_y
            if entered >= 0 and lx * hy - ly * hx <= 0.0:  # at home a side that (x, y) lies on opens half of all
                continue
            for back in range(3):
                if neighbours[following, back] == t:
                    stack.append((following, back, lx, ly, hx, hy))


@njit(cache=True, nogil=True)
def _mark(x, y, points, corners, bounded, low_x, low_y, high_x, high_y, seen):
    height, width = seen.shape
    ys = (points[corners[0], 1], points[corners[1], 1], points[corners[2], 1])
    for row in range(max(int(np.ceil(min(ys))), 0), min(int(np.floor(max(ys))), height - 1) + 1):
        left, right = np.inf, -np.inf
        for i in range(3):
            ax, ay = points[corners[i], 0], points[corners[i], 1]
            bx, by = points[corners[(i + 1) % 3], 0], points[corners[(i + 1) % 3], 1]
            if min(ay, by) > row or max(ay, by) < row:
                continue
            if ay == by:
                left, right = min(left, ax, bx), max(right, ax, bx)
            else:
                at = ax + (row - ay) / (by - ay) * (bx - ax)
                left, right = min(left, at), max(right, at)
        if left > right:
            continue
        dy = row - y
        for column in range(max(int(np.ceil(left)), 0), min(int(np.floor(right)), width - 1) + 1):
            dx = column - x
            if not bounded or (_passes(low_x, low_y, dx, dy, 1.0) and _passes(high_x, high_y, dx, dy, -1.0)):
                seen[row, column] = True


@njit(cache=True, nogil=True, inline="always")
def _passes(corner_x, corner_y, dx, dy, side):
    """Whether the way to (dx, dy) runs by a corner on its side of it. One that touches it on its way does not, see
    `wavefront.walk`."""
    far = np.hypot(dx, dy)
    between = 0.5 < np.hypot(corner_x, corner_y) < far - 0.5 and corner_x * dx + corner_y * dy > 0.0
    return side * (corner_x * dy - corner_y * dx) >= (GRAZE * far if between else 0.0)


@njit(cache=True, nogil=True)
def fill_between(loss, turned, seen, obstacle, step):
    """Complete, in place, what a search of some pixels found, every `step`-th at least: the rest of the free ground as
    a mean of the searched pixels round it, those in shadow, not `seen`, if there are any."""
    height, width = loss.shape
    for row in range(height):
        top = row // step * step
        for column in range(width):
            if obstacle[row, column] != 0:
                loss[row, column], turned[row, column] = np.inf, 0.0
                continue
            if loss[row, column] < np.inf:
                continue
            first = column // step * step
            total, of_loss, of_turn = 0.0, 0.0, 0.0
            for wider, only_shadow in ((0, True), (0, False), (step, False)):
                for r in range(max(top - wider, 0), min(top + step + wider + 1, height), step):
                    for c in range(max(first - wider, 0), min(first + step + wider + 1, width), step):
                        if obstacle[r, c] == 0 and loss[r, c] < np.inf and not (only_shadow and seen[r, c]):
                            weight = max(1.001 - abs(row - r) / step, 0.001) * max(
                                1.001 - abs(column - c) / step, 0.001
                            )
                            total += weight
                            of_loss += weight * loss[r, c]
                            of_turn += weight * turned[r, c]
                if total > 0.0:
                    break
            loss[row, column] = of_loss / total if total > 0.0 else np.inf
            turned[row, column] = of_turn / total if total > 0.0 else 0.0

"""Exact visibility on free ground that is cut into triangles, as numba kernels.

A triangle's edges are either walls (neighbour -1) or portals to the next triangle. Whether one point sees another is found by
walking the straight line through the portals, so it costs what lies on the way, not what the city holds.
Coordinates are pixels, x right, y down.
"""

from __future__ import annotations

import numpy as np
from numba import njit


OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(inline="always", **OPTIONS)
def cross(ax, ay, bx, by):
    return ax * by - ay * bx


@njit(**OPTIONS)
def locate(x, y, points, triangles):
    """The triangle that holds (x, y), or -1. A point on a shared edge goes to the triangle that holds it most safely."""
    best, best_margin = -1, -1e-9
    for t in range(triangles.shape[0]):
        margin = np.inf
        for i in range(3):
            a, b = triangles[t, i], triangles[t, (i + 1) % 3]
            ax, ay = points[a, 0], points[a, 1]
            bx, by = points[b, 0], points[b, 1]
            inside = cross(bx - ax, by - ay, x - ax, y - ay) / np.hypot(bx - ax, by - ay)
            if inside < margin:
                margin = inside
                if margin <= best_margin:
                    break
        if margin > best_margin:
            best, best_margin = t, margin
    return best


@njit(**OPTIONS)
def walk(x, y, start, to_x, to_y, points, triangles, neighbours):
    """Straight from (x, y) in triangle `start` towards (to_x, to_y).

    Returns the triangle reached and the point: the goal itself, or -1 and where the first wall stands in the way.
    """
    dx, dy = to_x - x, to_y - y
    t, previous = start, -1
    for _ in range(triangles.shape[0] + 1):
        leave, leave_s = -1, np.inf
        for i in range(3):
            if neighbours[t, i] >= 0 and neighbours[t, i] == previous:
                continue
            a, b = triangles[t, i], triangles[t, (i + 1) % 3]
            ax, ay = points[a, 0], points[a, 1]
            ex, ey = points[b, 0] - ax, points[b, 1] - ay
            towards = -cross(ex, ey, dx, dy)  # how fast the way runs out over this edge
            if towards <= 0.0:
                continue
            s = cross(ex, ey, x - ax, y - ay) / towards
            if s < leave_s:
                leave, leave_s = i, s
        if leave < 0 or leave_s >= 1.0:
            return t, to_x, to_y
        if neighbours[t, leave] < 0:
            s = max(leave_s, 0.0)
            return -1, x + s * dx, y + s * dy
        previous, t = t, neighbours[t, leave]
    return -1, x, y


@njit(**OPTIONS)
def label_pixels(points, triangles, labels):
    """Write into `labels` which triangle each pixel's centre lies in; pixels in none keep what they had."""
    height, width = labels.shape
    slack = 1e-9
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        xs = (points[a, 0], points[b, 0], points[c, 0])
        ys = (points[a, 1], points[b, 1], points[c, 1])
        top = max(int(np.ceil(min(ys) - slack)), 0)
        bottom = min(int(np.floor(max(ys) + slack)), height - 1)
        for row in range(top, bottom + 1):
            left, right = np.inf, -np.inf
            for i in range(3):
                ax, ay, bx, by = xs[i], ys[i], xs[(i + 1) % 3], ys[(i + 1) % 3]
                if min(ay, by) - slack > row or max(ay, by) + slack < row:
                    continue
                if abs(by - ay) <= slack:
                    left, right = min(left, ax, bx), max(right, ax, bx)
                else:
                    at = ax + min(max((row - ay) / (by - ay), 0.0), 1.0) * (bx - ax)
                    left, right = min(left, at), max(right, at)
            if left <= right:
                first, last = max(int(np.ceil(left - slack)), 0), min(int(np.floor(right + slack)), width - 1)
                if first <= last:  # a triangle beside the raster would count its end from the other side
                    labels[row, first : last + 1] = t

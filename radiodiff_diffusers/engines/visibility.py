"""Exact visibility among buildings, as numba kernels over a triangulation of the free ground.

The free ground is cut into triangles whose edges are either walls (neighbour -1) or portals to the next triangle. What a point
sees is found by looking through portals: the cone through each one is clipped by its two ends and handed on (the triangular
expansion of Bungiu et al., 2014). The work is what is seen, not all there is, so it does not grow with the city.
Coordinates are pixels, x right, y down; "left" below means the side with a positive cross product.
"""

from __future__ import annotations

import numpy as np
from numba import njit


OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
STACK = 1024  # triangles waiting to be looked into; a line of sight through more portals than that would be cut short


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

    Returns the triangle reached and the point: the goal itself, or (-1 and) the first wall on the way.
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


@njit(inline="always", **OPTIONS)
def within(dx, dy, rx, ry, lx, ly):
    """Is direction d inside the cone (below 180 degrees) from r leftwards to l?"""
    return cross(rx, ry, dx, dy) >= 0.0 and cross(dx, dy, lx, ly) >= 0.0


@njit(**OPTIONS)
def look(x, y, start, wedge, points, triangles, neighbours, fan, seen, cones):
    """What (x, y) in triangle `start` sees: all round where `wedge` is all zero, else from its direction (wedge[0], wedge[1])
    leftwards to (wedge[2], wedge[3]), less than 180 degrees on.

    Rows of `fan` become (x, y of the hit on the right, x, y of the hit on the left, triangle whose wall was hit, edge of it):
    with (x, y) as third corner they make up what is seen. `seen` and `cones` get every triangle entered and the directions
    (right, left) between which it was. Returns how many of each.
    """
    n_fan, n_seen, depth = 0, 0, 0
    stack_triangle = np.empty(STACK, np.int32)
    stack_edge = np.empty(STACK, np.int32)
    stack_cone = np.empty((STACK, 4))
    t, entered = start, -1
    rx, ry, lx, ly = wedge[0], wedge[1], wedge[2], wedge[3]
    clip = rx != 0.0 or ry != 0.0
    while True:
        if n_seen < seen.shape[0]:
            seen[n_seen] = t
            cones[n_seen, 0], cones[n_seen, 1], cones[n_seen, 2], cones[n_seen, 3] = rx, ry, lx, ly
            n_seen += 1
        for i in range(3):
            if i == entered:
                continue
            a, b = triangles[t, i], triangles[t, (i + 1) % 3]
            ax, ay = points[a, 0] - x, points[a, 1] - y
            bx, by = points[b, 0] - x, points[b, 1] - y
            if cross(ax, ay, bx, by) <= 0.0:  # edge on
                continue
            right_x, right_y, left_x, left_y = ax, ay, bx, by
            if clip:
                if not within(ax, ay, rx, ry, lx, ly):
                    if not within(rx, ry, ax, ay, bx, by):
                        continue
                    right_x, right_y = rx, ry
                if not within(bx, by, rx, ry, lx, ly):
                    if not within(lx, ly, ax, ay, bx, by):
                        continue
                    left_x, left_y = lx, ly
                if cross(right_x, right_y, left_x, left_y) <= 0.0:
                    continue
            beyond = neighbours[t, i]
            if beyond < 0 or depth == STACK:
                if n_fan < fan.shape[0]:
                    ex, ey = bx - ax, by - ay
                    reach = cross(ax, ay, ex, ey)
                    s = reach / cross(right_x, right_y, ex, ey)
                    fan[n_fan, 0], fan[n_fan, 1] = x + s * right_x, y + s * right_y
                    s = reach / cross(left_x, left_y, ex, ey)
                    fan[n_fan, 2], fan[n_fan, 3] = x + s * left_x, y + s * left_y
                    fan[n_fan, 4], fan[n_fan, 5] = t, i
                    n_fan += 1
                continue
            stack_triangle[depth] = beyond
            for k in range(3):
                if triangles[beyond, k] == b and triangles[beyond, (k + 1) % 3] == a:
                    stack_edge[depth] = k
            stack_cone[depth, 0], stack_cone[depth, 1] = right_x, right_y
            stack_cone[depth, 2], stack_cone[depth, 3] = left_x, left_y
            depth += 1
        if depth == 0:
            return n_fan, n_seen
        depth -= 1
        t, entered = stack_triangle[depth], stack_edge[depth]
        rx, ry, lx, ly = stack_cone[depth, 0], stack_cone[depth, 1], stack_cone[depth, 2], stack_cone[depth, 3]
        clip = True


@njit(**OPTIONS)
def triangle_rows(ax, ay, bx, by, cx, cy, height, slack):
    """First and last raster row (pixel centres at whole numbers) that a triangle touches, kept inside the raster."""
    top = max(int(np.ceil(min(ay, by, cy) - slack)), 0)
    bottom = min(int(np.floor(max(ay, by, cy) + slack)), height - 1)
    return top, bottom


@njit(**OPTIONS)
def row_span(ax, ay, bx, by, cx, cy, row, width, slack):
    """First and last column of `row` inside the triangle, edges counted in."""
    left, right = np.inf, -np.inf
    for k in range(3):
        if k == 0:
            px, py, qx, qy = ax, ay, bx, by
        elif k == 1:
            px, py, qx, qy = bx, by, cx, cy
        else:
            px, py, qx, qy = cx, cy, ax, ay
        if min(py, qy) - slack > row or max(py, qy) + slack < row:
            continue
        if abs(qy - py) <= slack:
            left, right = min(left, px, qx), max(right, px, qx)
        else:
            s = min(max((row - py) / (qy - py), 0.0), 1.0)
            at = px + s * (qx - px)
            left, right = min(left, at), max(right, at)
    if left > right:
        return 0, -1
    return max(int(np.ceil(left - slack)), 0), min(int(np.floor(right + slack)), width - 1)

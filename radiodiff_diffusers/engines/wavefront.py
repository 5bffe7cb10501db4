"""The two ways of the dominant path model, as numba kernels: along the ground round corners, and over the roofs.

Along the ground a front runs out from the transmitter over the pixels, least loss first. Every pixel keeps one way only: how it
got there from its last turning point. A neighbour takes over that turning point where it sees it, and makes the pixel itself its
turning point where it does not (the any-angle search of Nash et al., "Theta*", 2007, with the loss in place of the length).
Keeping one way a pixel is part of the model, not a shortcut: a way that was beaten somewhere does not come back further on.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit

from .visibility import OPTIONS, cross, walk


@njit(**OPTIONS)
def turn_loss(ax, ay, bx, by, laws):
    """dB for turning from direction a into direction b."""
    degrees = abs(np.degrees(np.arctan2(cross(ax, ay, bx, by), ax * bx + ay * by)))
    return laws[2] + laws[3] * min(degrees, laws[4])


@njit(**OPTIONS)
def along_the_ground(x, y, blocked, triangle_of_pixel, points, triangles, neighbours, metres, laws):
    """Loss in dB beyond 1 m on every pixel that a way along the ground reaches; infinite elsewhere. (x, y) must be free."""
    height, width = blocked.shape
    n = height * width
    sight, shadow = 10.0 * laws[0], 10.0 * laws[1]
    loss = np.full(n, np.inf)
    turning_point = np.full(n, -1, np.int64)  # -1 is the transmitter
    settled = np.zeros(n, np.bool_)
    # Of the way to a settled pixel, should it become a turning point: length, dB of the turns before it, direction of arrival.
    length, turned, arrive_x, arrive_y = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)

    front = [(0.0, 0)]
    front.pop()
    row, column = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
    for r in range(max(row - 1, 0), min(row + 2, height)):
        for c in range(max(column - 1, 0), min(column + 2, width)):
            if not blocked[r, c]:
                end, _, _ = walk(float(c), float(r), triangle_of_pixel[r, c], x, y, points, triangles, neighbours)
                if end >= 0:
                    q = r * width + c
                    loss[q] = sight * np.log10(max(np.hypot(c - x, r - y) * metres, 1.0))
                    heapq.heappush(front, (loss[q], q))

    while len(front) > 0:
        _, p = heapq.heappop(front)
        if settled[p]:
            continue
        settled[p] = True
        r, c = p // width, p % width
        t = turning_point[p]
        if t < 0:
            tx, ty, length_t, turned_t = x, y, 0.0, 0.0
        else:
            tx, ty, length_t, turned_t = float(t % width), float(t // width), length[t], turned[t]
        arrive_x[p], arrive_y[p] = c - tx, r - ty
        length[p] = length_t + np.hypot(arrive_x[p], arrive_y[p]) * metres
        turned[p] = turned_t
        if t >= 0:
            turned[p] += turn_loss(arrive_x[t], arrive_y[t], arrive_x[p], arrive_y[p], laws)
        for dr in range(-1, 2):
            for dc in range(-1, 2):
                r2, c2 = r + dr, c + dc
                if r2 < 0 or c2 < 0 or r2 >= height or c2 >= width or blocked[r2, c2]:
                    continue
                q = r2 * width + c2
                if settled[q]:
                    continue
                dx, dy = c2 - tx, r2 - ty
                far = length_t + np.hypot(dx, dy) * metres
                if t < 0:
                    here = sight * np.log10(max(far, 1.0))
                else:
                    here = shadow * np.log10(max(far, 1.0)) + turned_t + turn_loss(arrive_x[t], arrive_y[t], dx, dy, laws)
                if here >= loss[q]:
                    continue
                end, _, _ = walk(float(c2), float(r2), triangle_of_pixel[r2, c2], tx, ty, points, triangles, neighbours)
                if end >= 0:
                    loss[q], turning_point[q] = here, t
                    heapq.heappush(front, (here, q))
                elif arrive_x[p] != 0.0 or arrive_y[p] != 0.0:
                    far = length[p] + np.hypot(dr, dc) * metres
                    here = shadow * np.log10(max(far, 1.0)) + turned[p]
                    here += turn_loss(arrive_x[p], arrive_y[p], float(dc), float(dr), laws)
                    if here < loss[q]:
                        loss[q], turning_point[q] = here, p
                        heapq.heappush(front, (here, q))
    return loss.reshape(height, width)


@njit(**OPTIONS)
def over_the_roofs(x, y, home, triangle_of_pixel, points, triangles, neighbours, metres, rise_up, rise_down, laws, loss):
    """Lower `loss` where the way straight over the roofs costs less: up at the first wall, down at the last."""
    height, width = loss.shape
    shadow = 10.0 * laws[1]
    for row in range(height):
        for column in range(width):
            t = triangle_of_pixel[row, column]
            if t < 0:
                continue
            across = np.hypot(column - x, row - y) * metres
            if shadow * np.log10(max(across, 1.0)) + 2.0 * laws[2] + laws[5] >= loss[row, column]:
                continue
            end, wx, wy = walk(float(column), float(row), t, x, y, points, triangles, neighbours)
            if end >= 0:
                continue
            last_wall = np.hypot(column - wx, row - wy) * metres
            _, wx, wy = walk(x, y, home, float(column), float(row), points, triangles, neighbours)
            first_wall = np.hypot(x - wx, y - wy) * metres
            far = np.hypot(first_wall, rise_up) + max(across - first_wall - last_wall, 0.0) + np.hypot(last_wall, rise_down)
            here = shadow * np.log10(max(far, 1.0)) + laws[5]
            here += turn_loss(first_wall, 0.0, first_wall, rise_up, laws)
            here += turn_loss(last_wall, 0.0, last_wall, rise_down, laws)
            if here < loss[row, column]:
                loss[row, column] = here

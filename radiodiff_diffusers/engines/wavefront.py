"""How the dominant path model searches: a front that runs out over the pixels, round corners and over roofs.

The front takes pixels least loss first. Every pixel keeps one way only: how it got there from its last turning point.
A neighbour takes over that turning point where it sees it, and makes the pixel itself its turning point where it does
not (the any-angle search of Nash et al., "Theta*", 2007, with the loss in place of the length). Keeping one way a
pixel is part of the model, not a shortcut: a way that was beaten somewhere does not come back further on.

Building pixels stand for their roofs. A way climbs to the roof's near edge, turns, crosses it and turns down at the
far edge; all roofs are equally high, so between two roofs nothing is in the way.

What sees what is exact: the free ground is cut into triangles whose edges are either walls (neighbour -1) or portals
to the next triangle, and a straight line is walked through the portals. That costs what lies on the way, not what the
city holds.

All kernels stand in this one file because numba's cache looks no further than a function's own file for changes.
"""

from __future__ import annotations

import heapq

import numpy as np
from numba import njit

OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
# Pixels: a ray that touches a corner on its way is taken as blocked, one that begins or ends there is not.
GRAZE = 0.02
# Pixels between a roof's outermost pixel and its wall: from there both the roof and the ground below are seen.
EDGE = 1.5
TRANSMITTER, NOBODY = -1, -2
MOVES = np.array([(dr, dc) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if dr or dc])


@njit(inline="always", **OPTIONS)
def cross(ax, ay, bx, by):
    return ax * by - ay * bx


@njit(**OPTIONS)
def locate(x, y, points, triangles):
    """The triangle that holds (x, y), or -1. On a shared edge it is the one that holds the point most safely."""
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
    reach = np.hypot(dx, dy)
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
        if 0.5 < leave_s * reach < reach - 0.5:
            px, py = x + leave_s * dx, y + leave_s * dy
            for i in range(2):
                v = triangles[t, (leave + i) % 3]
                if abs(points[v, 0] - px) < GRAZE and abs(points[v, 1] - py) < GRAZE:
                    return -1, px, py
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


@njit(inline="always", **OPTIONS)
def turn_loss(ax, ay, az, bx, by, bz, laws):
    """dB for turning from direction a into direction b."""
    cx, cy, cz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    degrees = np.degrees(np.arctan2(np.sqrt(cx * cx + cy * cy + cz * cz), ax * bx + ay * by + az * bz))
    return laws[2] + laws[3] * min(degrees, laws[4])


@njit(**OPTIONS)
def _is_open(obstacle, searched, r, c, dr, dc, step):
    """Whether all is of one kind on the way to the pixel `step` on, and not all of it is searched anyway."""
    every = True
    for k in range(1, step + 1):
        if obstacle[r + k * dr, c + k * dc] != obstacle[r, c]:
            return False
        every = every and searched[r + k * dr, c + k * dc]
    return not every


@njit(**OPTIONS)
def run_front(
    x, y, home, obstacle, triangle_of_pixel, points, triangles, neighbours, metres, climb, rise, laws, coarse,
    searched, in_sight,
):  # fmt: skip
    """Loss in dB beyond 1 m on every free pixel, and the part of it that is lost in turns; infinite and 0 on
    obstacles and where no way leads.

    `obstacle` is 0 on free pixels, 1 on roofs, 2 where no way leads at all. `rise` is how high roofs are above the
    receivers, `climb` how high the transmitter is above them. With `coarse` above 1 the front takes the pixels in
    `searched` only (see `choose_pixels`), with leaps of so many pixels where it is open, and those in `in_sight` are
    known to see the transmitter; the others stay infinite.
    """
    height, width = obstacle.shape
    n = height * width
    sight, shadow = 10.0 * laws[0], 10.0 * laws[1]
    loss = np.full(n, np.inf)
    turning_point = np.full(n, TRANSMITTER, np.int64)
    settled = np.zeros(n, np.bool_)
    unseen = np.full(n, NOBODY, np.int64)  # the last turning point that was found not to see a pixel
    # Of the way to a settled pixel, should it become a turning point: length, dB of the turns before it, direction of
    # arrival.
    length, turned = np.zeros(n), np.zeros(n)
    arrive_x, arrive_y, arrive_z = np.zeros(n), np.zeros(n), np.zeros(n)

    front = [(0.0, 0)]
    front.pop()
    row, column = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
    for r in range(max(row - 1, 0), min(row + 2, height)):
        for c in range(max(column - 1, 0), min(column + 2, width)):
            if obstacle[r, c] == 0:
                end, _, _ = walk(float(c), float(r), triangle_of_pixel[r, c], x, y, points, triangles, neighbours)
                if end >= 0:
                    q = r * width + c
                    loss[q] = sight * np.log10(max(np.hypot(c - x, r - y) * metres, 1.0))
                    heapq.heappush(front, (loss[q], q))

    if coarse > 1:  # what is in sight is known; only from its rim do ways turn
        for r in range(height):
            for c in range(width):
                if in_sight[r, c] and obstacle[r, c] == 0:
                    q = r * width + c
                    far = np.sqrt(((c - x) ** 2 + (r - y) ** 2) * metres * metres + climb * climb)
                    loss[q] = sight * np.log10(max(far, 1.0))
                    for move in range(8):
                        r2, c2 = r + MOVES[move, 0], c + MOVES[move, 1]
                        if 0 <= r2 < height and 0 <= c2 < width and not in_sight[r2, c2]:
                            heapq.heappush(front, (loss[q], q))
                            break

    while len(front) > 0:
        _, p = heapq.heappop(front)
        if settled[p]:
            continue
        settled[p] = True
        r, c = p // width, p % width
        t = turning_point[p]
        on_roof = obstacle[r, c] != 0
        tx, ty, tz, length_t, turned_t, t_on_roof = x, y, climb, 0.0, 0.0, False
        if t != TRANSMITTER:
            tx, ty, length_t, turned_t = float(t % width), float(t // width), length[t], turned[t]
            t_on_roof = obstacle[t // width, t % width] != 0
            tz = rise if t_on_roof else 0.0
        arrive_x[p], arrive_y[p], arrive_z[p] = (c - tx) * metres, (r - ty) * metres, (rise if on_roof else 0.0) - tz
        length[p] = length_t + np.sqrt(arrive_x[p] ** 2 + arrive_y[p] ** 2 + arrive_z[p] ** 2)
        turned[p] = turned_t
        if t != TRANSMITTER:
            turned[p] += turn_loss(arrive_x[t], arrive_y[t], arrive_z[t], arrive_x[p], arrive_y[p], arrive_z[p], laws)

        may_leap = coarse > 1 and r % coarse == 0 and c % coarse == 0
        for move in range(16 if may_leap else 8):  # to the eight next to it, then to those a leap away
            step = 1 if move < 8 else coarse
            dr, dc = MOVES[move % 8, 0], MOVES[move % 8, 1]
            r2, c2 = r + dr * step, c + dc * step
            if r2 < 0 or c2 < 0 or r2 >= height or c2 >= width or obstacle[r2, c2] == 2:
                continue
            if coarse > 1 and not searched[r2, c2]:
                continue
            if step > 1 and not _is_open(obstacle, searched, r, c, dr, dc, step):
                continue
            q = r2 * width + c2
            if settled[q]:
                continue
            to_roof = obstacle[r2, c2] != 0
            qz = rise if to_roof else 0.0
            s, sx, sy, sz, length_s, turned_s = t, tx, ty, tz, length_t, turned_t
            if to_roof and t_on_roof:
                # From roof to roof nothing is in the way, so an earlier turning point on a roof is seen as well.
                while (
                    turning_point[s] != TRANSMITTER
                    and obstacle[turning_point[s] // width, turning_point[s] % width] != 0
                ):
                    s = turning_point[s]
                sx, sy, length_s, turned_s = float(s % width), float(s // width), length[s], turned[s]
            if turning_point[q] == s and loss[q] < np.inf:  # another neighbour has said so
                continue
            dx, dy, dz = (c2 - sx) * metres, (r2 - sy) * metres, qz - sz
            far = length_s + np.sqrt(dx * dx + dy * dy + dz * dz)
            if s == TRANSMITTER:
                here = (shadow if to_roof else sight) * np.log10(max(far, 1.0))
            else:
                here = shadow * np.log10(max(far, 1.0)) + turned_s
                if here + laws[2] >= loss[q]:  # whatever the angle
                    continue
                here += turn_loss(arrive_x[s], arrive_y[s], arrive_z[s], dx, dy, dz, laws)
            if here >= loss[q]:
                continue
            if unseen[q] == s:
                seen = False
            elif to_roof and t_on_roof:
                seen = True
            elif coarse > 1 and s == TRANSMITTER and not to_roof:
                seen = in_sight[r2, c2]
            elif to_roof:
                start = home if s == TRANSMITTER else triangle_of_pixel[s // width, s % width]
                end, wx, wy = walk(sx, sy, start, float(c2), float(r2), points, triangles, neighbours)
                seen = end >= 0 or np.hypot(wx - c2, wy - r2) <= EDGE
            else:
                end, wx, wy = walk(
                    float(c2), float(r2), triangle_of_pixel[r2, c2], sx, sy, points, triangles, neighbours
                )
                seen = end >= 0 or (t_on_roof and np.hypot(wx - sx, wy - sy) <= EDGE)
            if not seen:
                unseen[q] = s
                s, sx, sy, sz, length_s, turned_s = p, c, r, (rise if on_roof else 0.0), length[p], turned[p]
                ax, ay, az = arrive_x[p], arrive_y[p], arrive_z[p]
                if ax == 0.0 and ay == 0.0:
                    continue
                dx, dy, dz = (c2 - sx) * metres, (r2 - sy) * metres, qz - sz
                far = length_s + np.sqrt(dx * dx + dy * dy + dz * dz)
                here = shadow * np.log10(max(far, 1.0)) + turned_s
                if here + laws[2] >= loss[q]:
                    continue
                here += turn_loss(ax, ay, az, dx, dy, dz, laws)
                if here >= loss[q]:
                    continue
            loss[q], turning_point[q] = here, s
            heapq.heappush(front, (here, q))

    loss, turned = loss.reshape(height, width), turned.reshape(height, width)
    for r in range(height):
        for c in range(width):
            if obstacle[r, c] != 0:
                loss[r, c], turned[r, c] = np.inf, 0.0
    return loss, turned

"""What stands in a block of a made-up city: one function a style, and the table of styles, `STYLES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Style:
    """How a kind of quarter is laid out; every `(low, high)` is in metres, drawn anew for each city or block.

    Args:
        block: the sides of the blocks between streets (short side, long side).
        street: the width of the streets, from wall to wall before setbacks.
        fill: builds one block: `(width, height, rng) -> list of shapely polygons`, corner at the origin.
        bend: how far streets wander from straight lines.
        weight: how often a seed without a style picks this one.
    """

    block: tuple[tuple[float, float], tuple[float, float]]
    street: tuple[float, float]
    fill: Callable[[float, float, np.random.Generator], list[Any]]
    bend: tuple[float, float] = (0.0, 5.0)
    weight: float = 1.0


def rectangle(x: float, y: float, length: float, breadth: float, angle: float = 0.0) -> Any:
    import shapely

    along = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    across = np.array([-np.sin(angle), np.cos(angle)]) * breadth / 2
    return shapely.Polygon(np.array([x, y]) + [along + across, along - across, -along - across, across - along])


def _shape(x0: float, y0: float, x1: float, y1: float, rng: np.random.Generator, fancy: float) -> Any:
    """A rectangle, or with chance `fancy` one with a corner or a bay taken out: an L, a U or a T."""
    import shapely

    body = shapely.box(x0, y0, x1, y1)
    width, height = x1 - x0, y1 - y0
    if rng.random() >= fancy or min(width, height) < 7:
        return body
    a, b = rng.uniform(0.25, 0.55, 2)
    kind = rng.integers(4)
    flip_x, flip_y = rng.random(2) < 0.5
    if kind < 2:  # L
        cuts = [(0, 0, a, b)]
    elif kind == 2:  # U
        cuts = [(0.3, 0, 0.7, b)]
    else:  # T
        cuts = [(0, 0, a / 1.6, b), (1 - a / 1.6, 0, 1, b)]
    for u0, v0, u1, v1 in cuts:
        u0, u1 = (1 - u1, 1 - u0) if flip_x else (u0, u1)
        v0, v1 = (1 - v1, 1 - v0) if flip_y else (v0, v1)
        margin = 0.5  # cut past the outline, or slivers stay
        body = body.difference(
            shapely.box(
                x0 + u0 * width - (margin if u0 == 0 else 0),
                y0 + v0 * height - (margin if v0 == 0 else 0),
                x0 + u1 * width + (margin if u1 == 1 else 0),
                y0 + v1 * height + (margin if v1 == 1 else 0),
            )
        )
    return body


def _divide(length: float, piece: float, rng: np.random.Generator, spread: float = 0.25) -> np.ndarray:
    """Cut points of `length` into pieces of about `piece`, from 0 to `length`."""
    n = max(1, round(length / piece))
    cuts = np.cumsum(rng.uniform(1 - spread, 1 + spread, n))
    return np.concatenate([[0.0], cuts / cuts[-1] * length])


def _lots(
    width: float, height: float, rng: np.random.Generator, front: float, depth: float
) -> list[tuple[float, float, float, float]]:
    rows = _divide(height, depth, rng, 0.15)
    lots = []
    for y0, y1 in zip(rows[:-1], rows[1:], strict=True):
        columns = _divide(width, front, rng)
        lots += [(x0, y0, x1, y1) for x0, x1 in zip(columns[:-1], columns[1:], strict=True)]
    return lots


def _apartments(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """Detached blocks of flats, one a lot, with gaps of a few metres: Ankara, Tel Aviv."""
    made = []
    front = rng.uniform(16, 27)
    depth = rng.uniform(20, 31)
    fancy = 0.3
    if rng.random() < 0.12 and width > 60:  # one row of long slabs across the block
        front, depth, fancy = rng.uniform(20, 28), height, 0.1
    gap = rng.uniform(1.9, 3.3)
    for x0, y0, x1, y1 in _lots(width, height, rng, front, depth):
        if rng.random() < 0.08:
            continue
        left, bottom, right, top = gap * rng.uniform(0.85, 1.3, 4)
        if rng.random() < 0.2:  # set back from the street or from the yard
            bottom += rng.uniform(0, 0.3) * (y1 - y0)
        made.append(_shape(x0 + left, y0 + bottom, x1 - right, y1 - top, rng, fancy))
    return made


def _perimeter(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """A closed or half-open ring of houses round a yard: Berlin, Barcelona."""
    import shapely

    depth = rng.uniform(10, 15)
    block = shapely.box(0, 0, width, height)
    if min(width, height) < 2 * depth + 8:
        return [_shape(0, 0, width, height, rng, 0.4)]
    if rng.random() < 0.3:  # corners cut off
        cut = rng.uniform(3, 7)
        block = block.buffer(-cut, join_style="mitre").buffer(cut, join_style="bevel")
    yard = shapely.box(depth, depth, width - depth * rng.uniform(0.8, 1.2), height - depth * rng.uniform(0.8, 1.2))
    ring = block.difference(yard)
    made = []
    wing = yard.bounds
    if (wing[2] - wing[0]) > 45 and rng.random() < 0.6:  # wings across the yard
        for x in _divide(width, rng.uniform(35, 50), rng)[1:-1]:
            ring = ring.union(shapely.box(x - 5, depth - 1, x + 5, height - depth + 1))
    elif min(wing[2] - wing[0], wing[3] - wing[1]) > 24 and rng.random() < 0.5:  # a house in the yard
        made.append(yard.buffer(-rng.uniform(7, 9), join_style="mitre"))
    for _ in range(rng.choice([0, 1, 2, 3], p=[0.45, 0.25, 0.2, 0.1])):  # gates and missing houses
        if rng.random() < 0.5:
            x, gate = rng.uniform(0, width), rng.uniform(4, 18)
            y = rng.choice([0.0, height])
            ring = ring.difference(shapely.box(x - gate / 2, y - depth * 1.3, x + gate / 2, y + depth * 1.3))
        else:
            y, gate = rng.uniform(0, height), rng.uniform(4, 18)
            x = rng.choice([0.0, width])
            ring = ring.difference(shapely.box(x - depth * 1.3, y - gate / 2, x + depth * 1.3, y + gate / 2))
    return [*shapely.get_parts(ring), *made]


def _terraces(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """Rows of houses along the two long sides with gardens between: London, Glasgow."""
    depth = rng.uniform(8, 12)
    setback = rng.uniform(0, 3)
    made = []
    rows = [(setback, setback + depth), (height - setback - depth, height - setback)]
    if rows[1][0] - rows[0][1] < 6:
        rows = [(setback, max(height - setback, setback + 7))]
    for y0, y1 in rows:
        cuts = _divide(width, rng.uniform(22, 60), rng, 0.4)
        for x0, x1 in zip(cuts[:-1], cuts[1:], strict=True):
            if rng.random() < 0.06:
                continue
            gap = rng.uniform(1.2, 3.0)
            made.append(_shape(x0 + gap, y0, x1 - gap, y1 + rng.uniform(-1.5, 1.5), rng, 0.15))
    return made


def _old_town(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """Narrow, crooked, nearly full blocks."""
    import shapely

    made = []

    def split(piece: Any, target: float) -> None:
        corners = np.array(shapely.oriented_envelope(piece).exterior.coords)
        sides = np.diff(corners, axis=0)[:2]
        longer = int(np.linalg.norm(sides[1]) > np.linalg.norm(sides[0]))
        if piece.area < target * rng.uniform(0.8, 1.8):
            lane = rng.uniform(1.2, 2.4)
            shrunk = piece.buffer(-lane, join_style="mitre")
            if rng.random() > 0.07:
                made.extend(shapely.get_parts(shrunk))
            return
        at = corners[0] + sides[longer] * rng.uniform(0.35, 0.65)
        direction = sides[1 - longer] / np.linalg.norm(sides[1 - longer])
        tilt = rng.normal(0, 0.12)
        direction = np.array(
            [
                direction[0] * np.cos(tilt) - direction[1] * np.sin(tilt),
                direction[0] * np.sin(tilt) + direction[1] * np.cos(tilt),
            ]
        )
        normal = np.array([-direction[1], direction[0]])
        far = 4 * (width + height)
        side = shapely.Polygon(
            [
                at - far * direction,
                at + far * direction,
                at + far * (direction + normal),
                at + far * (normal - direction),
            ]
        )
        for part in (piece.intersection(side), piece.difference(side)):
            if part.geom_type == "Polygon" and part.area > 5:
                split(part, target)

    split(shapely.box(0, 0, width, height), rng.uniform(220, 620))
    return made


def _suburb(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """Small houses in gardens."""
    from shapely import affinity

    made = []
    front, depth = rng.uniform(17, 26), rng.uniform(20, 32)
    for x0, y0, x1, y1 in _lots(width, height, rng, front, depth):
        if rng.random() < 0.12:
            continue
        w, h = rng.uniform(9, 17), rng.uniform(8, 14)
        w, h = min(w, x1 - x0 - 4), min(h, y1 - y0 - 4)
        if min(w, h) < 6:
            continue
        x = rng.uniform(x0 + 1.5, x1 - 1.5 - w)
        y = rng.uniform(y0 + 1.5, y1 - 1.5 - h)
        house = _shape(x, y, x + w, y + h, rng, 0.3)
        made.append(affinity.rotate(house, rng.normal(0, 6)))
    return made


def _halls(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """Warehouses, shops and stations: a few very large buildings on open yards."""
    made = []
    for x0, y0, x1, y1 in _lots(width, height, rng, rng.uniform(40, 95), rng.uniform(35, 80)):
        if rng.random() < 0.1:
            continue
        left, bottom, right, top = rng.uniform(2.5, 11, 4)
        made.append(_shape(x0 + left, y0 + bottom, x1 - right, y1 - top, rng, 0.45))
    return made


def _estate(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """Long slabs and towers in the green, free of the street line."""
    import shapely
    from shapely import affinity

    made = []
    breadth = rng.uniform(10, 14)
    base = rng.choice([0.0, 90.0]) + rng.normal(0, 8)
    for x0, y0, x1, y1 in _lots(width, height, rng, rng.uniform(30, 52), rng.uniform(30, 52)):
        if rng.random() < 0.12:
            continue
        room = min(x1 - x0, y1 - y0)
        centre = ((x0 + x1) / 2, (y0 + y1) / 2)
        if rng.random() < 0.25:  # a tower
            side = min(rng.uniform(15, 25), 0.7 * room)
            made.append(rectangle(*centre, side, side * rng.uniform(0.8, 1.2), np.deg2rad(base)))
            continue
        length = min(rng.uniform(30, 75), max(x1 - x0, y1 - y0) * 0.92)
        turned = base + (90.0 if (x1 - x0 < y1 - y0) != (rng.random() < 0.15) else 0.0)
        if length > room and abs(np.cos(np.deg2rad(turned)) * (x1 - x0)) < length * 0.8:
            length = max(0.85 * room, 20)
        slab = rectangle(0, 0, length, breadth)
        if rng.random() < 0.3:  # an elbow at one end
            slab = slab.union(shapely.box(length / 2 - breadth, 0, length / 2, min(length * 0.4, 0.4 * room)))
        made.append(affinity.translate(affinity.rotate(slab, turned, origin=(0, 0)), *centre))
    return made


def _campus(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """L, U and T shapes and courts, loosely set."""
    from shapely import affinity

    made = []
    for x0, y0, x1, y1 in _lots(width, height, rng, rng.uniform(30, 50), rng.uniform(26, 44)):
        if rng.random() < 0.15:
            continue
        left, bottom, right, top = rng.uniform(1.5, 5.5, 4)
        shape = _shape(x0 + left, y0 + bottom, x1 - right, y1 - top, rng, 0.8)
        wing = rng.uniform(9, 13)
        if rng.random() < 0.5:  # hollow it out to wings
            inner = shape.buffer(-wing, join_style="mitre")
            if inner.area > 60:
                shape = shape.difference(inner)
        made.append(affinity.rotate(shape, rng.normal(0, 3)))
    return made


def _downtown(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """Deep city blocks, each cut by alleys into two to six big houses, often with light wells."""
    made = []
    for x0, y0, x1, y1 in _lots(width, height, rng, rng.uniform(20, 48), rng.uniform(24, 40)):
        if rng.random() < 0.06:
            continue
        gap = rng.uniform(1.1, 2.6, 4)
        house = _shape(x0 + gap[0], y0 + gap[1], x1 - gap[2], y1 - gap[3], rng, 0.3)
        well = house.buffer(-rng.uniform(8, 11), join_style="mitre")
        if well.area > 30 and rng.random() < 0.5:
            house = house.difference(well)
        made.append(house)
    return made


def _mixed(width: float, height: float, rng: np.random.Generator) -> list[Any]:
    """A different fill in every block."""
    fills = (_apartments, _perimeter, _terraces, _old_town, _suburb, _halls, _estate, _campus, _downtown)
    return fills[rng.choice(len(fills), p=[0.27, 0.13, 0.1, 0.06, 0.1, 0.06, 0.1, 0.08, 0.1])](width, height, rng)


STYLES: dict[str, Style] = {
    "apartments": Style(((38, 58), (70, 130)), (8, 17), _apartments, weight=2.2),
    "perimeter": Style(((45, 75), (55, 110)), (14, 24), _perimeter, weight=1.3),
    "terraces": Style(((36, 58), (80, 150)), (9, 16), _terraces, weight=1.2),
    "old_town": Style(((32, 60), (40, 80)), (3, 7), _old_town, bend=(4.0, 12.0), weight=0.8),
    "suburb": Style(((42, 62), (80, 140)), (9, 16), _suburb, bend=(0.0, 12.0), weight=1.0),
    "halls": Style(((80, 120), (90, 160)), (12, 22), _halls, weight=0.5),
    "estate": Style(((60, 110), (90, 150)), (6, 16), _estate, weight=0.9),
    "campus": Style(((60, 100), (80, 140)), (8, 18), _campus, weight=0.7),
    "downtown": Style(((48, 66), (50, 100)), (12, 20), _downtown, weight=0.8),
    "mixed": Style(((42, 75), (60, 120)), (9, 18), _mixed, weight=1.8),
}

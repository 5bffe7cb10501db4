"""Made-up cities: `city = generate_city(seed)`, `[city.replace(transmitter=p) for p in transmitters(city, 80, rng)]`.

A city is a `Scene` without a transmitter that carries its outlines (`city.polygons`). The same seed and arguments give
the same city everywhere. Ten styles of building are known (`STYLES`); without one the seed picks it, so many seeds
make a varied set. Vertices lie on whole metres, and row 0 and the last column stay free, as in RadioMapSeer's maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..geometry import clean_polygons, rasterize
from ..scene import Scene
from .city_blocks import STYLES, Style, rectangle

MIN_GAP = 2.0  # metres between buildings: RadioMapSeer's smallest
MIN_AREA = 20.0  # square metres
TRANSMITTER_AREA = 150.0  # metres: RadioMapSeer keeps its transmitters in the middle of the map


def generate_city(
    seed: int, size: int | tuple[int, int] = 256, metres_per_pixel: float = 1.0, style: str | None = None
) -> Scene:
    """A city made from `seed` alone.

    Args:
        seed (`int`): any number from 0 up.
        size (`int` or `(height, width)`, defaults to 256): pixels.
        metres_per_pixel (`float`, defaults to 1.0): buildings keep their size in metres.
        style (`str`, *optional*): one of `STYLES`, or `None` to let the seed choose.
    """
    height, width = (size, size) if np.isscalar(size) else size
    if seed < 0 or height < 8 or width < 8 or not metres_per_pixel > 0:
        raise ValueError(
            f"a city needs a seed from 0 up, a size of at least 8 pixels and a positive scale; got seed {seed}, "
            f"{width} x {height} pixels, {metres_per_pixel} metres per pixel"
        )
    if style is not None and style not in STYLES:
        raise ValueError(f"unknown city style {style!r}: use one of {', '.join(STYLES)}")
    rng = np.random.default_rng([seed, 0xC17])
    if style is None:
        weights = np.array([s.weight for s in STYLES.values()])
        style = list(STYLES)[rng.choice(len(STYLES), p=weights / weights.sum())]
    extent = (width * metres_per_pixel, height * metres_per_pixel)
    buildings = _lay_out(STYLES[style], extent, rng)
    # metres with y up, as the outlines of RadioMapSeer, to pixels of its gain raster
    polygons = from_shapely(buildings)
    polygons = tuple(
        tuple(
            np.stack([ring[:, 0] / metres_per_pixel - 1, height - ring[:, 1] / metres_per_pixel], -1) for ring in rings
        )
        for rings in polygons
    )
    return Scene(
        rasterize(polygons, (height, width)),
        polygons=polygons,
        metres_per_pixel=metres_per_pixel,
        name=f"{style}-{seed}",
    )


def transmitters(
    city: Scene, n: int, rng: np.random.Generator, area: float = TRANSMITTER_AREA
) -> list[tuple[int, int]]:
    """`n` different free pixels `(x, y)` in the middle `area` metres of the city, drawn evenly as RadioMapSeer's are.

    A small part of them thus stands right at walls and in gaps between buildings.
    """
    import shapely

    height, width = city.shape
    half = area / 2 / city.metres_per_pixel
    rows, columns = np.indices(city.shape)
    middle = (np.abs(columns - (width - 1) / 2) <= half) & (np.abs(rows - (height - 1) / 2) <= half)
    free = np.argwhere(middle & ~city.obstacles)
    if city.polygons and len(free):  # not on a wall's line either
        walls = shapely.STRtree(to_shapely(city.polygons))
        on_wall, _ = walls.query(shapely.points(free[:, ::-1].astype(float)), predicate="dwithin", distance=0.1)
        free = np.delete(free, on_wall, axis=0)
    if len(free) < n:
        raise ValueError(
            f"city {city.name or ''} has {len(free)} free pixels in its middle {area:g} m, too few for {n} "
            "transmitters: ask for fewer, or for a larger area"
        )
    return [(int(column), int(row)) for row, column in free[rng.choice(len(free), n, replace=False)]]


def park_cars(city: Scene, n: int, rng: np.random.Generator, length: float = 4.0, breadth: float = 2.0) -> tuple:
    """Up to `n` cars as polygons: 4 m x 2 m, on free ground along the walls of the streets, clear of each other."""
    import shapely

    metres = city.metres_per_pixel
    height, width = city.shape
    walls = to_shapely(city.polygons or ())
    lines = [shapely.boundary(w) for w in walls]
    tree = shapely.STRtree(walls)
    edges = shapely.STRtree(lines)
    parked: list[Any] = []
    for _ in range(20 * n):
        if len(parked) == n:
            break
        x, y = rng.uniform(0, width - 1), rng.uniform(0, height - 1)
        centre = shapely.Point(x, y)
        angle = rng.uniform(0, np.pi)
        if walls:
            line = lines[edges.nearest(centre)]
            away = line.distance(centre) * metres
            if not 2.0 <= away <= 12.0:
                continue
            along = line.project(centre)
            a, b = line.interpolate(along - 0.5), line.interpolate(along + 0.5)
            angle = np.arctan2(b.y - a.y, b.x - a.x)
        car = rectangle(x, y, length / metres, breadth / metres, angle)
        taken = tree.query(car, predicate="dwithin", distance=0.5 / metres).size
        if taken or any(car.distance(other) < 0.5 / metres for other in parked):
            continue
        if car.bounds[0] < 0 or car.bounds[1] < 0 or car.bounds[2] > width - 1 or car.bounds[3] > height - 1:
            continue
        parked.append(car)
    return from_shapely(parked)


def to_shapely(polygons: Iterable[Any]) -> list[Any]:
    """Valid shapely polygons of outlines that may cross themselves."""
    import shapely

    return [shapely.Polygon(rings[0], rings[1:]) for rings in clean_polygons(polygons)]


def from_shapely(shapes: Iterable[Any], min_area: float = 0.0) -> tuple[tuple[np.ndarray, ...], ...]:
    """The outlines (closed rings) of all polygons in shapely geometries of any kind; points and lines are dropped."""
    import shapely

    parts = shapely.get_parts(shapely.get_parts(np.asarray(list(shapes), dtype=object)))  # collections can nest
    return tuple(
        tuple(np.asarray(ring.coords)[:, :2] for ring in (part.exterior, *part.interiors))
        for part in parts
        if part.geom_type == "Polygon" and part.area > min_area
    )


# The plan of a city: streets, blocks, what fills them ---------------------------------------------------------------


def _lay_out(style: Style, extent: tuple[float, float], rng: np.random.Generator) -> list[Any]:
    """The buildings of one city in whole metres, x right and y up, from (0, 0) to `extent`."""
    import shapely

    half = np.hypot(*extent) / 2 + 40
    angle = rng.uniform(0, np.pi / 2) if rng.random() < 0.75 else rng.normal(0, 0.04)
    bend = _bend(rng, rng.uniform(*style.bend))
    centre = np.array(extent) / 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    open_ground = _open_ground(half, rng)
    frame = shapely.box(0, 0, *extent)
    nearby = frame.buffer(10)
    found = []
    for x, y, width, height in _blocks(half, style, rng):
        middle = bend(np.array([[x + width / 2, y + height / 2]])) @ turn + centre
        if not nearby.dwithin(shapely.Point(*middle[0]), np.hypot(width, height) / 2):
            continue
        for building in style.fill(width, height, rng):
            if building.is_empty:  # a block too narrow for its courtyard's wings
                continue
            placed = shapely.transform(building, lambda points, x=x, y=y: bend(points + (x, y)) @ turn + centre)
            if open_ground is None or not open_ground(np.array(placed.centroid.coords[0]) - centre):
                found.append(placed)
    return _tidy(found, frame)


def _tidy(buildings: list[Any], frame: Any) -> list[Any]:
    """On whole metres, inside the frame, valid, large enough, and none nearer than MIN_GAP to an earlier one."""
    import shapely

    if not buildings:
        return []
    whole = shapely.make_valid(np.array(buildings, dtype=object))  # bending can make a wall cross another
    snapped = shapely.set_precision(shapely.intersection(whole, frame), 1.0)
    snapped = shapely.set_precision(snapped, 0)  # the grid is done with: results of later steps need not lie on it
    parts = [p for p in shapely.get_parts(shapely.get_parts(snapped)) if p.geom_type == "Polygon"]
    parts = [shapely.simplify(p, 0) for p in parts]
    parts = [p for p in parts if p.is_valid and p.area >= MIN_AREA and p.buffer(-0.75).area > 0]
    tree = shapely.STRtree(parts)
    kept = np.zeros(len(parts), bool)
    for i, part in enumerate(parts):
        near = tree.query(part, predicate="dwithin", distance=MIN_GAP - 1e-9)
        kept[i] = not kept[near].any()
    return [part for part, keep in zip(parts, kept, strict=True) if keep]


def _bend(rng: np.random.Generator, amplitude: float) -> Callable[[np.ndarray], np.ndarray]:
    """A gentle warp of the plane: two slow waves across each axis."""
    length, phase = rng.uniform(150, 400, 4), rng.uniform(0, 2 * np.pi, 4)
    size = amplitude * rng.uniform(0.2, 1.0, 4)

    def bend(points: np.ndarray) -> np.ndarray:
        x, y = points[:, 0], points[:, 1]
        waves = [size[k] * np.sin(2 * np.pi * (y, x, x + y, x - y)[k] / length[k] + phase[k]) for k in range(4)]
        return np.stack([x + waves[0] + waves[2], y + waves[1] + waves[3]], -1)

    return bend


def _open_ground(half: float, rng: np.random.Generator) -> Callable[[np.ndarray], bool] | None:
    """A park, a river or the edge of town in some of the cities: a test of points, from the city's middle."""
    kind = rng.random()
    angle = rng.uniform(0, 2 * np.pi)
    across = np.array([np.cos(angle), np.sin(angle)])
    if kind < 0.12:  # a park or a square
        middle, radius = rng.uniform(-100, 100, 2), rng.uniform(20, 55)
        return lambda p: bool(np.hypot(*(p - middle)) < radius)
    if kind < 0.20:  # a river or a railway
        place, breadth = rng.uniform(-80, 80), rng.uniform(15, 35)
        return lambda p: bool(abs(p @ across - place) < breadth)
    if kind < 0.32:  # the edge of town
        place = rng.uniform(25, 110)
        return lambda p: bool(p @ across > place)
    return None


def _blocks(half: float, style: Style, rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """Blocks `(x, y, width, height)` that cover the square from -half to half: a grid, or broken rows of blocks."""
    short, long = style.block
    long_side = rng.uniform(*long)
    short_side = rng.uniform(*short)
    street = rng.uniform(*style.street)
    broken = rng.random() < 0.5
    spread = rng.uniform(0.05, 0.35)

    def steps(side: float) -> list[tuple[float, float]]:
        at, found = -half - rng.uniform(0, side), []
        while at < half:
            length = side * rng.uniform(1 - spread, 1 + spread)
            found.append((at, length))
            avenue = rng.random() < 0.12
            at += length + street * (rng.uniform(1.4, 2.2) if avenue else rng.uniform(0.8, 1.2))
        return found

    rows = steps(short_side)
    columns = steps(long_side)
    blocks = []
    for y, height in rows:
        blocks += [(x, y, width, height) for x, width in (steps(long_side) if broken else columns)]
    return blocks

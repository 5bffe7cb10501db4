"""How long the dominant path engine takes, by size: is the cost in step with the pixels?

    python benchmarks/bench_dominant_path.py --polygons polygon/buildings_complete/0.json

Each size is the same city laid side by side until the map is full, so streets and corners a pixel stay alike. Without
`--polygons` the city is a grid of oblique blocks. CPU seconds of its one thread, best of some; compiling is not
counted.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import shapely

from radiodiff_diffusers.engines import dominant_path, prepare
from radiodiff_diffusers.scene import Scene

TILE = 256


def tile_from_file(path: Path) -> list[shapely.Polygon]:
    """RadioMapSeer's rings have y up; on the gain's raster they stand at (x - 1, 256 - y)."""
    return [shapely.Polygon([(x - 1, TILE - y) for x, y in ring]) for ring in json.loads(path.read_text())]


def grid_tile() -> list[shapely.Polygon]:
    rng = np.random.default_rng(0)
    places = [(x, y) for x in range(16, TILE, 32) for y in range(16, TILE, 32)]
    return [
        shapely.affinity.rotate(shapely.box(x - 9, y - 7, x + 9, y + 7), angle)
        for (x, y), angle in zip(places, rng.uniform(-20, 20, len(places)), strict=True)
    ]


def lay_out(tile: list[shapely.Polygon], side: int) -> Scene:
    shifts = [(x, y) for x in range(0, side, TILE) for y in range(0, side, TILE)]
    city = shapely.union_all([shapely.transform(p, lambda xy, s=s: xy + s) for p in tile for s in shifts])
    rows, columns = np.mgrid[:side, :side]
    shapely.prepare(city)
    buildings = shapely.contains_xy(city, columns + 0.05, rows - 0.05)
    middle = np.argwhere(~buildings)
    row, column = middle[np.argmin(np.abs(middle - side / 2).sum(axis=1))]
    polygons = tuple(
        tuple(shapely.get_coordinates(ring) for ring in shapely.get_rings(part)) for part in shapely.get_parts(city)
    )
    return Scene(buildings, transmitter=(float(column), float(row)), polygons=polygons)


def best_of(times: int, work) -> float:
    spans = []
    for _ in range(times):
        start = time.process_time()
        work()
        spans.append(time.process_time() - start)
    return min(spans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--polygons", type=Path, help="a RadioMapSeer polygon file; default: a made-up grid")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    tile = tile_from_file(args.polygons) if args.polygons else grid_tile()
    dominant_path(lay_out(tile, TILE))
    print("| side | corners | prepare, s | a map, s | a map, microseconds a pixel |")
    print("|---|---|---|---|---|")
    for side in args.sides:
        scene = lay_out(tile, side)
        corners = sum(len(ring) - 1 for polygon in scene.polygons for ring in polygon)
        first = best_of(args.repeats, lambda scene=scene: prepare(scene))
        city = prepare(scene)
        each = best_of(args.repeats, lambda scene=scene, city=city: dominant_path(scene, city=city))
        print(f"| {side} | {corners} | {first:.3f} | {each:.3f} | {each / side**2 * 1e6:.2f} |", flush=True)


if __name__ == "__main__":
    main()

"""Do made-up cities look like real ones? Prints a table of their statistics, and draws them side by side.

python benchmarks/city_statistics.py --pictures docs/images
python benchmarks/city_statistics.py --radiomapseer RadioMapSeer        # adds its maps to the table
"""

import argparse
import json
from pathlib import Path

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from radiodiff_diffusers.data.cities import generate_city, to_shapely, transmitters
from radiodiff_diffusers.data.city_blocks import STYLES
from radiodiff_diffusers.data.footprints import CITIES, footprint_tiles
from radiodiff_diffusers.data.png import read_gray
from radiodiff_diffusers.data.radiomapseer import read_scene
from radiodiff_diffusers.engines import dominant_path, ray_tracing
from radiodiff_diffusers.engines.sionna_rt import missing_for_ray_tracing
from radiodiff_diffusers.scene import RadioMap, Scene

COLUMNS = {
    "coverage %": "mean share of ground under buildings",
    "std": "of the coverage from map to map",
    "buildings": "a map",
    "area": "median, square metres",
    "short": "median of the shorter side, metres",
    "long": "median of the longer side",
    "gap": "median distance to the nearest other building",
    "open": "90th percentile of a free pixel's distance to the nearest wall",
    "corners": "a map",
    "yards": "a map",
}


def statistics(cities) -> dict[str, float]:
    rows = {name: [] for name in ("area", "short", "long", "gap", "open")}
    counts, corners, yards = [], [], []
    for city in cities:
        shapes = to_shapely(city.polygons)
        counts.append(len(shapes))
        corners.append(sum(len(ring) - 1 for rings in city.polygons for ring in rings))
        yards.append(sum(len(shape.interiors) for shape in shapes))
        rows["open"] += distance_transform_edt(~city.buildings)[~city.buildings].tolist()
        tree = shapely.STRtree(shapes)
        for shape in shapes:
            x0, y0, x1, y1 = shape.bounds
            if x0 < 1 or y0 < 1 or x1 > city.shape[1] - 3 or y1 > city.shape[0] - 2:
                continue  # cut by the map's edge
            sides = np.linalg.norm(np.diff(shapely.get_coordinates(shapely.oriented_envelope(shape)), axis=0), axis=1)
            rows["area"].append(shape.area)
            rows["short"].append(sides[:2].min())
            rows["long"].append(sides[:2].max())
            _, near = tree.query_nearest(shape, exclusive=True, return_distance=True, all_matches=False)
            rows["gap"] += near.tolist()
    coverage = np.array([city.buildings.mean() for city in cities]) * 100
    return {
        "coverage %": coverage.mean(),
        "std": coverage.std(),
        "buildings": np.mean(counts),
        **{name: float(np.median(values)) for name, values in rows.items() if name != "open"},
        "open": float(np.quantile(rows["open"], 0.9)),
        "corners": np.mean(corners),
        "yards": np.mean(yards),
    }


def radiomapseer(folder: str) -> list:
    numbers = sorted(int(path.stem) for path in Path(folder, "polygon/buildings_complete").glob("*.json"))
    return [read_scene(folder, number, layout="polygon") for number in numbers]


def contact_sheet(real_maps: str | None = None, columns: int = 6) -> Image.Image:
    """Made-up cities of every style, then real towns, each above its radio map by the dominant path engine; last, maps
    of RadioMapSeer, each beside what the engine makes of the same outlines."""
    cities = [generate_city(100 + k, style=style) for k, style in enumerate(STYLES)]
    for town, wanted in zip(CITIES, (2, 1, 2, 3), strict=True):
        tiles = footprint_tiles(town)
        cities += [tiles[k] for k in np.linspace(0, len(tiles) - 1, wanted + 2).astype(int)[1:-1]]
    pairs = []
    for k, city in enumerate(cities):
        place = transmitters(city, 1, np.random.default_rng(k))[0]
        gray = np.rint(dominant_path(city.replace(transmitter=place)).gray).astype(np.uint8)
        pairs.append(labelled(city.name, city, gray))
    if real_maps:
        pairs += [pair for place in sorted(Path(real_maps, "gain/DPM").glob("*.png"))[:columns // 2]
                  for pair in beside_the_engine(real_maps, *map(int, place.stem.split("_")))]  # fmt: skip
    rows = []
    for k in range(0, len(pairs), columns):
        row = [np.pad(pair, ((2, 2), (2, 2)), constant_values=90) for pair in pairs[k : k + columns]]
        row += [np.zeros_like(row[0])] * (columns - len(row))
        rows.append(np.concatenate(row, axis=1))
    return Image.fromarray(np.concatenate(rows)).reduce(2)


def labelled(name: str, city: Scene, gray: np.ndarray) -> np.ndarray:
    label = Image.new("L", (256, 32))
    ImageDraw.Draw(label).text((4, 2), name, fill=230, font=ImageFont.load_default(22))
    return np.concatenate([label, city.buildings * np.uint8(255), np.full((2, 256), 90, np.uint8), gray])


def beside_the_engine(folder: str, map_id: int, tx_id: int) -> list[np.ndarray]:
    scene = read_scene(folder, map_id, tx_id, layout="polygon")
    real = read_gray(Path(folder, f"gain/DPM/{map_id}_{tx_id}.png"))
    simulated = np.rint(dominant_path(scene).gray).astype(np.uint8)
    return [labelled(f"real {map_id}_{tx_id}", scene, real), labelled(f"simulated {map_id}_{tx_id}", scene, simulated)]


def real_and_simulated(folder: str, columns: int = 4):
    """Maps of RadioMapSeer; below, what the engine makes of the same outlines, of made-up cities and of real towns."""
    from matplotlib.figure import Figure

    places = sorted(tuple(map(int, path.stem.split("_"))) for path in Path(folder, "gain/DPM").glob("*.png"))[:columns]
    same = [read_scene(folder, *place, layout="polygon") for place in places]
    real = [RadioMap.from_gray(read_gray(Path(folder, f"gain/DPM/{m}_{t}.png"))).gain_db for m, t in places]
    made_up = [
        generate_city(300 + k, style=style) for k, style in enumerate(("apartments", "old_town", "perimeter", "halls"))
    ]
    towns = [
        tiles[len(tiles) // 2] for tiles in map(footprint_tiles, ("munich", "etoile", "san_francisco", "florence"))
    ]
    for cities in (made_up, towns):
        for k, city in enumerate(cities):
            cities[k] = city.replace(transmitter=transmitters(city, 1, np.random.default_rng(k))[0])
    rows = {
        "RadioMapSeer (WinProp)": (same, real),
        "simulated, same outlines": (same, None),
        "simulated, made-up cities": (made_up, None),
        "simulated, real footprints": (towns, None),
    }
    figure = Figure(figsize=(9.6, 9.4), layout="compressed")
    axes = figure.subplots(len(rows), columns)
    for row, (title, (scenes, maps)) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(title)
        for k, (axis, scene) in enumerate(zip(row, scenes, strict=False)):
            gain = dominant_path(scene).gain_db if maps is None else maps[k]
            shown = axis.imshow(
                np.ma.masked_where(scene.buildings, gain), vmin=-147, vmax=-60, interpolation="nearest"
            )
            axis.plot(*scene.transmitter, "+", color="red", markersize=9)
            name = f"transmitter {scene.name.split('_')[1]}" if scenes is same else scene.name.split("-")[0]
            axis.set_title(name.replace("_", " "), fontsize=9)
            axis.set(xticks=[], yticks=[], facecolor="0.75")
    figure.colorbar(shown, ax=axes, label="gain, dB", shrink=0.4)
    return figure


def engines_side_by_side() -> Image.Image:
    """The same transmitters by both outdoor engines: outlines, dominant path, ray tracing."""
    rows = []
    for k, style in enumerate(("apartments", "perimeter", "downtown")):
        city = generate_city(200 + k, style=style)
        scene = city.replace(transmitter=transmitters(city, 1, np.random.default_rng(k))[0])
        maps = [np.rint(engine(scene).gray).astype(np.uint8) for engine in (dominant_path, ray_tracing)]
        row = [city.buildings * np.uint8(255), *maps]
        rows.append(np.concatenate([np.pad(plane, 2, constant_values=90) for plane in row], axis=1))
    return Image.fromarray(np.concatenate(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cities", type=int, default=60, help="made-up cities a row of the table")
    parser.add_argument("--radiomapseer", help="a folder with polygon/buildings_complete and png/buildings_complete")
    parser.add_argument("--pictures", type=Path, help="where to put the contact sheet")
    args = parser.parse_args()
    groups = {style: [generate_city(seed, style=style) for seed in range(args.cities)] for style in STYLES}
    groups["made-up, any style"] = [generate_city(seed) for seed in range(3 * args.cities)]
    groups |= {town: footprint_tiles(town, stride=256) for town in CITIES}
    if args.radiomapseer:
        groups["RadioMapSeer"] = radiomapseer(args.radiomapseer)
    print(f"{'':20}{'maps':>6}" + "".join(f"{name:>12}" for name in COLUMNS))
    for name, cities in groups.items():
        print(f"{name:20}{len(cities):6}" + "".join(f"{value:12.1f}" for value in statistics(cities).values()))
    print(json.dumps(COLUMNS, indent=1))
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        contact_sheet(args.radiomapseer).save(args.pictures / "simulated_cities.png", optimize=True)
        if args.radiomapseer:
            figure = real_and_simulated(args.radiomapseer)
            figure.savefig(args.pictures / "real_and_simulated.png", dpi=100, bbox_inches="tight", pad_inches=0.05)
        if missing_for_ray_tracing() is None:
            engines_side_by_side().save(args.pictures / "engines.png", optimize=True)
        print(f"pictures: {args.pictures}")

"""Real cities: `tiles = footprint_tiles("munich")`, a list of `Scene`s of 256 m x 256 m cut from a real town.

The towns are the ones that come with Sionna RT (`pip install sionna-rt`), built from OpenStreetMap (ODbL,
(c) OpenStreetMap contributors): munich, etoile (Paris), florence and san_francisco. What is cut out is what a
transmitter and a receiver 1.5 m above the ground see: the walls at that height, so passages under houses are open.
`florence` is the test city (`TEST_CITIES`): keep it out of anything that is trained.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import rasterize
from ..scene import Scene
from .cities import from_shapely

CITIES = ("munich", "etoile", "florence", "san_francisco")
TEST_CITIES = ("florence",)

EYE_LEVEL = 1.5  # metres above ground: where transmitters and receivers stand
_GROUNDS = {"ground", "plane", "terrain"}
_CACHE_VERSION = 1


def footprint_tiles(
    city: str,
    tile: int = 256,
    stride: int | None = None,
    metres_per_pixel: float = 1.0,
    min_coverage: float = 0.08,
    angle: float = 0.0,
    snap: float = 1.0,
) -> list[Scene]:
    """The city cut into square scenes without transmitters, row by row from the north-west.

    Args:
        city (`str`): one of `CITIES`.
        tile (`int`, defaults to 256): side in pixels.
        stride (`int`, *optional*): pixels from one tile to the next; half a tile where left out.
        metres_per_pixel (`float`, defaults to 1.0): the scale.
        min_coverage (`float`, defaults to 0.08): tiles of which buildings cover less are left out; so are those that
            are not wholly inside the modelled part of the town.
        angle (`float`, defaults to 0): turns the town by that many degrees first, for other cuts of the same streets.
        snap (`float`, defaults to 1.0): corners are moved to whole multiples of this, in metres (RadioMapSeer's are
            whole metres); 0 keeps them.
    """
    return cut_tiles(city_footprints(city), city, tile, stride, metres_per_pixel, min_coverage, angle, snap)


def cut_tiles(
    town: np.ndarray,
    name: str,
    tile: int = 256,
    stride: int | None = None,
    metres_per_pixel: float = 1.0,
    min_coverage: float = 0.08,
    angle: float = 0.0,
    snap: float = 1.0,
) -> list[Scene]:
    """As `footprint_tiles`, of any town: shapely polygons in metres, x east and y north."""
    import shapely
    from shapely import affinity

    if tile < 8 or not metres_per_pixel > 0 or (stride is not None and stride < 1):
        raise ValueError(
            f"tiles need at least 8 pixels, a positive stride and scale; got tile {tile}, stride {stride}, "
            f"{metres_per_pixel} metres per pixel"
        )
    step = (stride or tile // 2) * metres_per_pixel
    side = tile * metres_per_pixel
    covered = shapely.concave_hull(shapely.MultiPoint(shapely.get_coordinates(town)), ratio=0.15).buffer(20)
    if angle:
        town = np.array([affinity.rotate(part, angle, origin=(0, 0)) for part in town], dtype=object)
        covered = affinity.rotate(covered, angle, origin=(0, 0))
    tree = shapely.STRtree(town)
    west, south, east, north = covered.bounds
    scenes = []
    for row, top in enumerate(np.arange(north, south + side - 1e-6, -step)):
        for column, left in enumerate(np.arange(west, east - side + 1e-6, step)):
            left, top = round(left), round(top)
            frame = shapely.box(left, top - side, left + side, top)
            if frame.intersection(covered).area < 0.9 * frame.area:
                continue
            inside = shapely.intersection(town[tree.query(frame, predicate="intersects")], frame)
            inside = _tidied(inside, snap, (left, top - side))
            if shapely.area(inside) < min_coverage * frame.area:
                continue
            polygons = tuple(  # from metres, y up from the south-west corner, to pixels of RadioMapSeer's gain raster
                tuple(ring / (metres_per_pixel, -metres_per_pixel) + (-1, tile) for ring in rings)
                for rings in from_shapely([inside])
            )
            scenes.append(
                Scene(
                    rasterize(polygons, (tile, tile)),
                    polygons=polygons,
                    metres_per_pixel=metres_per_pixel,
                    name=f"{name}-{row:02d}-{column:02d}" + (f"-{angle:g}" if angle else ""),
                )
            )
    return scenes


def city_footprints(city: str) -> np.ndarray:
    """The outlines of all buildings of a town 1.5 m above the ground: disjoint shapely polygons in metres, north up.

    The first call takes some seconds and keeps the result in the user's cache folder.
    """
    import shapely

    if city not in CITIES:
        raise ValueError(f"unknown city {city!r}: use one of {', '.join(CITIES)}")
    cached = _cache_folder() / f"{city}-{_CACHE_VERSION}.wkb"
    if cached.is_file():
        try:
            return np.array(shapely.get_parts(shapely.from_wkb(cached.read_bytes())), dtype=object)
        except (shapely.errors.GEOSException, OSError):  # damaged: made anew below
            pass
    buildings = [
        _outline(*mesh) for mesh in _buildings(_scene_folder(city) / "meshes", sloping=city == "san_francisco")
    ]
    town = shapely.union_all([b for b in buildings if not b.is_empty])
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        unfinished = cached.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_bytes(shapely.to_wkb(town))
        unfinished.replace(cached)
    except OSError:  # a read-only home: made anew next time
        pass
    return np.array(shapely.get_parts(town), dtype=object)


def _tidied(pieces: Any, snap: float, origin: tuple[float, float]) -> Any:
    """One geometry from a tile's pieces: narrow slits closed, tiny yards filled, corners snapped."""
    import shapely
    from shapely import affinity

    whole = affinity.translate(shapely.union_all(pieces), -origin[0], -origin[1])
    whole = whole.buffer(0.6, join_style="mitre").buffer(-0.6, join_style="mitre").simplify(0.4)
    if snap:
        whole = shapely.set_precision(whole, snap)
        whole = shapely.set_precision(whole, 0).simplify(0)
    kept = []
    for part in shapely.get_parts(whole):
        if part.geom_type == "Polygon" and part.area >= 10:
            yards = [ring for ring in part.interiors if shapely.Polygon(ring).area >= 10]
            kept.append(shapely.Polygon(part.exterior, yards))
    return shapely.MultiPolygon(kept) if kept else shapely.MultiPolygon()


def _scene_folder(city: str) -> Path:
    package = importlib.util.find_spec("sionna")
    for place in (package and package.submodule_search_locations) or ():
        folder = Path(place) / "rt" / "scenes" / city
        if folder.is_dir():
            return folder
    raise ValueError(f"the outlines of {city} come with Sionna RT, which is not installed: pip install sionna-rt")


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "radiodiff_diffusers" / "footprints"


# From meshes to outlines --------------------------------------------------------------------------------------------


def _buildings(folder: Path, sloping: bool) -> list[tuple[np.ndarray, float]]:
    """Every building's triangles (n, 3, 3) and the height at which to cut it. Walls and roof are separate files."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.ply")):
        name, _, part = path.stem.rpartition("-")
        name = name or part
        if name.lower() not in _GROUNDS:
            files.setdefault(name, []).append(path)
    buildings = []
    for paths in files.values():
        triangles = np.concatenate([read_ply_triangles(path) for path in paths])
        base = triangles[..., 2].min() if sloping else 0.0  # without a hill, the ground lies at 0
        buildings.append((triangles, base + EYE_LEVEL))
    return buildings


def _outline(triangles: np.ndarray, height: float) -> Any:
    """What of a building stands at this height: the faces its walls enclose there that lie under its roof."""
    import shapely

    z = triangles[..., 2]
    if z.min() > height or z.max() < height:
        return shapely.Polygon()
    flat = triangles[..., :2]
    crossing = (z.min(axis=1) < height) & (z.max(axis=1) >= height)
    segments = _cut(triangles[crossing], height)
    above = flat[z.max(axis=1) > height]
    edges = above[:, 1:] - above[:, :1]
    area = np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]) / 2
    roof = shapely.union_all(shapely.polygons(above[area > 1e-3]), grid_size=0.01)
    if len(segments):
        lines = shapely.union_all(shapely.linestrings(segments), grid_size=0.01)
        faces = shapely.get_parts(shapely.polygonize(shapely.get_parts(lines)))
        if len(faces):
            under = [roof.buffer(0.1).contains(face.representative_point()) for face in faces]
            outline = shapely.union_all(faces[np.array(under)])
            if outline.area > 0.3 * roof.area:
                return outline
    return roof  # walls that do not close: an open mesh


def _cut(triangles: np.ndarray, height: float) -> np.ndarray:
    """The segments (n, 2, 2) in which a level plane meets triangles that cross it."""
    start, end = triangles, np.roll(triangles, -1, axis=1)
    below, then = start[..., 2] < height, end[..., 2] < height
    crossing = below != then
    share = (height - start[..., 2]) / np.where(crossing, end[..., 2] - start[..., 2], 1)
    points = start[..., :2] + share[..., None] * (end[..., :2] - start[..., :2])
    segments = points[crossing].reshape(-1, 2, 2)  # each crossing triangle has two crossing edges
    return segments[np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1) > 1e-6]


def read_ply_triangles(path: Path) -> np.ndarray:
    """The triangles (n, 3, 3) of a binary PLY mesh."""
    data = path.read_bytes()
    header, _, body = data.partition(b"end_header\n")
    types = {b"float": "<f4", b"double": "<f8", b"uchar": "u1", b"int": "<i4", b"uint": "<u4"}
    counts, fields = {}, []
    for line in header.split(b"\n"):
        words = line.split()
        if words[:1] == [b"element"]:
            counts[words[1]] = int(words[2])
        elif words[:1] == [b"property"] and words[1] != b"list":
            fields.append((words[2].decode(), types[words[1]]))
    if b"binary_little_endian" not in header or b"vertex" not in counts:
        raise ValueError(f"{path} is not a binary PLY mesh")
    vertices = np.frombuffer(body, np.dtype(fields), counts[b"vertex"])
    faces = np.frombuffer(
        body, np.dtype([("n", "u1"), ("index", "<i4", 3)]), counts[b"face"], vertices.dtype.itemsize * len(vertices)
    )
    if (faces["n"] != 3).any():
        raise ValueError(f"{path} has faces that are not triangles")
    points = np.stack([vertices[axis] for axis in "xyz"], -1).astype(np.float64)
    return points[faces["index"]]

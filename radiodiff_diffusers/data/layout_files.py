"""Layouts from files: `scene = scene_from_file("town.geojson", transmitter=(120, 87))`.

Read are GeoJSON (degrees or metres), WKT (metres, one geometry a line), RadioMapSeer's outlines (a JSON list of rings)
and mask images (bright buildings on dark ground). North is up. Degrees are projected to the UTM zone of the place, for
which pyproj has to be installed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import rasterize
from ..scene import MAX_PIXELS, Scene
from .cities import from_shapely

Projection = Callable[[np.ndarray], np.ndarray] | None

LARGEST_TOWN = 3.0  # degrees; a file that spans more is not in degrees
METRES = "metres"
MOST_STRETCH = 0.005  # a projected system whose metres differ more than that from true ones is projected anew


def scene_from_file(
    path: str | Path,
    *,
    metres_per_pixel: float = 1.0,
    size: int | tuple[int, int] | None = None,
    centre: tuple[float, float] | None = None,
    crs: str | None = None,
    **fields: Any,
) -> Scene:
    """The buildings in a file as a `Scene`.

    Args:
        path (`str` or `Path`): .geojson or .json, .wkt, or an image.
        metres_per_pixel (`float`, defaults to 1.0): the scale; masks and RadioMapSeer's outlines are pixels already.
        size (`int` or `(height, width)`, *optional*): the scene's pixels; just large enough for all buildings where
            left out (RadioMapSeer's outlines: 256, or more where they reach further).
        centre (`(x, y)`, *optional*): the middle of the scene in the file's coordinates (longitude, latitude).
        crs (`str`, *optional*): what the file's coordinates are, where it does not say or says it wrongly: `"metres"`,
            or a name that pyproj knows, such as `"EPSG:25832"`.
        fields: further fields of the scene, such as `transmitter`.
    """
    path = Path(path)
    if not metres_per_pixel > 0:
        raise ValueError(f"metres_per_pixel must be above 0; got {metres_per_pixel}")
    shape = None if size is None else ((int(size),) * 2 if np.isscalar(size) else tuple(int(side) for side in size))
    fields = {"name": path.stem, "metres_per_pixel": metres_per_pixel, **fields}
    if _is_image(path):
        scene = Scene(path, **fields)
        if shape not in (None, scene.shape):
            raise ValueError(
                f"{path} is {scene.shape[1]} x {scene.shape[0]} pixels, not {shape[1]} x {shape[0]}: crop it first"
            )
        return scene
    content = _load(path)
    if isinstance(content, list):
        polygons, shape = _radiomapseer(content, path, shape)
    else:
        town, project = _town(path, crs)
        polygons, shape = _window(town, project, path, metres_per_pixel, shape, centre)
    return Scene(rasterize(polygons, shape), polygons=polygons, **fields)


def town_from_file(path: str | Path, crs: str | None = None) -> np.ndarray:
    """All buildings in a GeoJSON or WKT file: disjoint shapely polygons in metres, x east and y north."""
    return _town(Path(path), crs)[0]


def is_town(path: str | Path) -> bool:
    """Whether a file holds outlines in metres or degrees, of which many maps can be cut, and not one map in pixels."""
    return not _is_image(Path(path)) and not isinstance(_load(Path(path)), list)


def _town(path: Path, crs: str | None) -> tuple[np.ndarray, Projection]:
    import shapely

    content = _load(path)
    if isinstance(content, list):
        raise ValueError(f"{path} holds outlines in pixels, not a town in metres: read it with scene_from_file")
    geometries, stated = content
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(np.array(geometries, dtype=object))))
    parts = parts[(shapely.get_type_id(parts) == 3) & (shapely.area(parts) > 0)]
    if not len(parts):
        raise ValueError(f"{path} has no polygons: buildings must be Polygon or MultiPolygon geometries")
    project = _projection(path, shapely.total_bounds(parts), crs or stated)
    if project is not None:
        parts = shapely.transform(parts, project)
    if not np.isfinite(shapely.get_coordinates(parts)).all():
        raise ValueError(f"{path} has coordinates that are no places in {crs or stated or 'degrees'}")
    return np.array(shapely.get_parts(shapely.union_all(parts)), dtype=object), project


# Reading -------------------------------------------------------------------------------------------------------------


def _is_image(path: Path) -> bool:
    return path.suffix.lower() not in {".json", ".geojson", ".wkt", ".txt"}


def _load(path: Path) -> list[Any] | tuple[list[Any], str | None]:
    """RadioMapSeer's rings as a list; or shapely geometries and the name of their coordinate system."""
    import shapely

    if _is_image(path):
        raise ValueError(f"{path} is not a file of outlines: use .geojson, .json or .wkt")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if path.suffix.lower() in {".wkt", ".txt"}:
        try:
            return [shapely.from_wkt(line) for line in text.splitlines() if line.strip()], METRES
        except shapely.errors.ShapelyError as error:
            raise ValueError(f"{path} is not well-known text: {str(error).splitlines()[0]}") from None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if isinstance(content, list):
        return content
    kind = content.get("type") if isinstance(content, dict) else None
    features = {"FeatureCollection": lambda: content["features"], "Feature": lambda: [content]}
    try:
        if kind in features:
            found = [feature["geometry"] for feature in features[kind]() if feature.get("geometry")]
        elif kind == "GeometryCollection" or (kind in {"Polygon", "MultiPolygon"}):
            found = [content]
        else:
            raise ValueError(
                f"{path} is JSON of type {kind!r}: expected GeoJSON, or a list of rings as RadioMapSeer's"
            )
        geometries = [shapely.from_geojson(json.dumps(geometry)) for geometry in found]
    except (KeyError, TypeError, AttributeError, shapely.errors.ShapelyError) as error:
        raise ValueError(f"{path} is damaged GeoJSON: {str(error).splitlines()[0]}") from None
    stated = content.get("crs")
    try:
        return geometries, stated if stated is None or isinstance(stated, str) else stated["properties"]["name"]
    except (KeyError, TypeError):
        raise ValueError(
            f"{path} names a coordinate system in a way that is not known: say which it is, crs=..."
        ) from None


def _projection(path: Path, bounds: np.ndarray, crs: str | None) -> Projection:
    """A function from the file's (n, 2) coordinates to metres, or `None` where they are metres already."""
    if crs == METRES:
        return None
    west, south, east, north = bounds
    looks_like_degrees = -180 <= west and east <= 180 and -90 <= south and north <= 90
    if crs is None and not looks_like_degrees:
        return None
    if crs is None and max(east - west, north - south) > LARGEST_TOWN:
        raise ValueError(
            f"{path} would span {max(east - west, north - south):.0f} degrees: if it is in metres say crs='metres', "
            'or write "crs": "metres" into the file'
        )
    try:
        import pyproj
    except ImportError:
        raise ValueError(
            f"{path} is in {crs or 'degrees'}: pip install pyproj, which turns that into metres"
        ) from None
    try:
        source = pyproj.CRS.from_user_input(crs or "OGC:CRS84")
    except pyproj.exceptions.CRSError:
        raise ValueError(f"unknown coordinate system {crs!r}: use 'metres' or a name such as 'EPSG:25832'") from None
    in_metres = source.is_projected and all(axis.unit_conversion_factor == 1 for axis in source.axis_info[:2])
    to_degrees = pyproj.Transformer.from_crs(source, "OGC:CRS84", always_xy=True)
    longitude, latitude = to_degrees.transform((west + east) / 2, (south + north) / 2)
    if not (np.isfinite(longitude) and np.isfinite(latitude)):
        raise ValueError(f"{path} has coordinates that are no places in {crs or 'degrees'}")
    if in_metres:
        # Web Mercator counts in metres, too, but of the equator: at 48 degrees a house is half as long again.
        scale = pyproj.Proj(source).get_factors(longitude, latitude)
        if max(abs(scale.meridional_scale - 1), abs(scale.parallel_scale - 1)) < MOST_STRETCH:
            return None
    zone = min(int((longitude + 180) // 6) + 1, 60)
    utm = pyproj.CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)
    to_metres = pyproj.Transformer.from_crs(source, utm, always_xy=True)
    return lambda points: np.stack(to_metres.transform(points[:, 0], points[:, 1]), -1)


# From coordinates to pixels ------------------------------------------------------------------------------------------


def _radiomapseer(rings: list[Any], path: Path, shape: tuple[int, int] | None):
    """Outlines in pixels of the gain's raster; see `radiodiff_diffusers.geometry`."""
    try:
        points = [np.asarray(ring, np.float64) for ring in rings]
        if not points or any(ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 for ring in points):
            raise ValueError
    except (ValueError, TypeError):
        raise ValueError(f"{path} must hold a list of rings, each a list of three or more [x, y]") from None
    if shape is None:
        reach = np.max([ring.max(axis=0) for ring in points], axis=0)
        shape = tuple(int(max(256, np.ceil(side))) for side in reach[::-1])
    _check_size(path, shape)
    return tuple((ring * (1, -1) + (-1, shape[0]),) for ring in points), shape


def _window(town: np.ndarray, project: Projection, path: Path, metres_per_pixel: float, shape, centre):
    import shapely

    west, south, east, north = shapely.total_bounds(town)
    middle = ((west + east) / 2, (south + north) / 2)
    if centre is not None:
        point = np.array([centre], float)
        middle = tuple(float(v) for v in (project(point) if project is not None else point)[0])
    if shape is None:
        reach = np.array([max(north - middle[1], middle[1] - south), max(east - middle[0], middle[0] - west)])
        shape = tuple(int(max(8, np.ceil(2 * side / metres_per_pixel))) for side in reach)
    _check_size(path, shape)
    height, width = shape
    corner = np.array([middle[0] - width / 2 * metres_per_pixel, middle[1] + height / 2 * metres_per_pixel])
    frame = shapely.box(*corner, *(corner + np.array([width, -height]) * metres_per_pixel))
    inside = shapely.intersection(town[shapely.intersects(town, frame)], frame)
    polygons = tuple(
        tuple((ring - corner) / (metres_per_pixel, -metres_per_pixel) - 0.5 for ring in rings)
        for rings in from_shapely(inside)
    )
    if not polygons:
        raise ValueError(f"{path} has no buildings within {width} x {height} pixels: choose another centre")
    return polygons, shape


def _check_size(path: Path, shape: tuple[int, int]) -> None:
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ValueError(
            f"{path} would be {shape[1]} x {shape[0]} pixels, more than the {MAX_PIXELS:,} a map may have: "
            "give a size and a centre, or more metres per pixel"
        )

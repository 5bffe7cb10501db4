"""Files as RadioMapSeer has them: outlines without holes, 8-bit images, each written whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from .cities import from_shapely, to_shapely


def rings_of(polygons, height: int) -> list[list[list[float]]]:
    """Outlines as RadioMapSeer has them: one closed ring a building, (x, y) pixels of its own raster, y up.

    It knows no holes, so a courtyard is joined to the outside by a slit without width.
    """
    rings = []
    for shape in to_shapely(polygons):
        ring = _without_holes(shape)
        points = np.round(ring * (1, -1) + (1, height), 6)
        rings.append([[int(v) if v == int(v) else float(v) for v in point] for point in points])
    return rings


def _without_holes(shape: Any) -> np.ndarray:
    import shapely

    (rings,) = from_shapely([shape])
    ring, holes = rings[0][:-1], [hole[:-1] for hole in rings[1:]]
    while holes:
        best = None
        for number, hole in enumerate(holes):
            lengths = np.linalg.norm(ring[:, None] - hole[None], axis=-1)
            for flat in np.argsort(lengths, axis=None)[:20]:
                i, j = np.unravel_index(flat, lengths.shape)
                inside = shape.covers(shapely.LineString([ring[i], hole[j]]))
                choice = (not inside, lengths[i, j], number, i, j)
                if best is None or choice < best:
                    best = choice
                if inside:
                    break
        _, _, number, i, j = best
        hole = holes.pop(number)
        ring = np.concatenate([ring[: i + 1], hole[j:], hole[: j + 1], ring[i:]])
    return np.concatenate([ring, ring[:1]])


def write_image(path: Path, plane: np.ndarray) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "png")
    write_whole(path, buffer.getvalue())


def write_whole(path: Path, data: bytes) -> None:
    """All of a file or nothing of it; the same bytes are not written twice."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def holds_anything(path: Path) -> bool:
    """Whether a file is there and not empty: a machine that lost power may leave empty ones."""
    return path.is_file() and path.stat().st_size > 0

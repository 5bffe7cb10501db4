"""One row a map: how (`Scene`, `RadioMap`) pairs and spectrograms are kept in a Hugging Face data set.

Planes are pictures. What came as whole gray levels (masks, maps read from 8-bit files, walls in whole dB) is kept as
an 8-bit PNG, exactly; everything else as a float32 TIFF. So a pair comes back as it went in, and the Hub's viewer
shows most of it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..scene import POSITIVE_NUMBERS, GainScale, RadioMap, Scene, read_image
from .png import decode_gray

if TYPE_CHECKING:
    import datasets

WHOLE = 2e-3  # gray levels: what float32 dB may be off whole ones
NUMBERS = (*POSITIVE_NUMBERS, "azimuth")
RASTER = ("raster_offset_x", "raster_offset_y")
# What a gray level 255 of each picture stands for; the gain map's own scale says it there.
PICTURES = {
    "buildings": 1.0,
    "cars": 1.0,
    "reflectance": 255.0,
    "transmittance": 255.0,
    "measurements": 255.0,
    "k2": 1.0,
}
REMEMBERED = 1024  # masks (8 KB each for 256 x 256 pixels) and outlines that many rows share
SCALE = ("db_at_0", "db_at_255", "floor_db", "noise_floor_db")


def map_features() -> datasets.Features:
    """The columns of a data set of radio maps."""
    from datasets import Features, Image, List, Value

    pictures = {name: Image() for name in ("gain", *PICTURES)}
    numbers = {name: Value("float64") for name in ("transmitter_x", "transmitter_y", *NUMBERS, *RASTER, *SCALE)}
    return Features(
        {
            "name": Value("string"),
            **pictures,
            **numbers,
            "antenna_pattern": List(Value("float32")),
            "polygons": Value("large_string"),
        }
    )


def map_row(pair: tuple[Scene, RadioMap]) -> dict[str, Any]:
    """A pair as a row of `map_features`."""
    scene, radio_map = pair
    gray = radio_map.gray
    exact = _is_whole(gray) and np.allclose(radio_map.scale.to_db(gray), radio_map.gain_db, atol=1e-3)
    row: dict[str, Any] = {
        "name": scene.name,
        "gain": _picture(gray if exact else radio_map.gain_db, whole=exact),
        "transmitter_x": None if scene.transmitter is None else float(scene.transmitter[0]),
        "transmitter_y": None if scene.transmitter is None else float(scene.transmitter[1]),
        "antenna_pattern": None if scene.antenna_pattern is None else scene.antenna_pattern.tolist(),
        "polygons": None if scene.polygons is None else json.dumps([[r.tolist() for r in p] for p in scene.polygons]),
    }
    row |= {name: float(getattr(scene, name)) for name in NUMBERS}
    row |= dict(zip(RASTER, scene.raster_offset, strict=True))
    row |= {name: float(getattr(radio_map.scale, name)) for name in SCALE}
    for name, top in PICTURES.items():
        plane = getattr(scene, name)
        if plane is None:
            row[name] = None
        else:
            levels = plane * np.float32(255.0 / top) if plane.dtype != bool else plane * np.uint8(255)
            whole = _is_whole(levels)
            row[name] = _picture(levels if whole else plane, whole)
    return row


def map_pair(row: dict[str, Any]) -> tuple[Scene, RadioMap]:
    """The pair that a row was made of. Columns that a data set lacks are taken as unknown."""
    name = row.get("name")
    if row.get("gain") is None or row.get("buildings") is None:
        raise ValueError(f"row {name!r} has no gain or no buildings: this data set does not hold radio maps")
    scale = GainScale(*(row[field] for field in SCALE)) if row.get("db_at_0") is not None else GainScale.RADIOMAPSEER
    planes = {}
    for field, top in PICTURES.items():
        if row.get(field) is not None:
            if field in {"buildings", "cars"}:
                planes[field] = _mask(row[field], f"{field} of {name}")
            else:
                plane = _plane(row[field], f"{field} of {name}")
                planes[field] = plane * np.float32(top / 255.0) if plane.dtype == np.uint8 else plane
    polygons = row.get("polygons")
    scene = Scene(
        **planes,
        **{field: row[field] for field in NUMBERS if row.get(field) is not None},
        transmitter=None if row.get("transmitter_x") is None else (row["transmitter_x"], row["transmitter_y"]),
        antenna_pattern=row.get("antenna_pattern") or None,
        raster_offset=tuple(row.get(field) or 0.0 for field in RASTER),
        polygons=_outlines(polygons) if polygons else None,
        name=name,
    )
    gain = _plane(row["gain"], f"gain of {name}")
    make = RadioMap.from_gray if gain.dtype == np.uint8 else RadioMap
    return scene, make(gain, scale=scale, metres_per_pixel=scene.metres_per_pixel)


def spectrogram_features(classes: list[str]) -> datasets.Features:
    """The columns of a data set of spectrograms by user."""
    from datasets import ClassLabel, Features, Image, Value

    return Features(
        {"image": Image(), "label": ClassLabel(names=classes), "condition": Value("string"), "path": Value("string")}
    )


def spectrogram_row(item: tuple[Path, int, str]) -> dict[str, Any]:
    """An item of a `MicroDopplerFolder` as a row: the file as it is."""
    path, label, condition = item
    return {
        "image": {"bytes": path.read_bytes(), "path": None},
        "label": int(label),
        "condition": condition,
        "path": path.name,
    }


def check_spectrogram(row: dict[str, Any]) -> None:
    """One line where a row's image cannot be read."""
    _plane(row["image"] or {}, f"image {row.get('path') or ''} of label {row.get('label')}")


def row_maker(data: Any) -> tuple[Callable[[int], dict[str, Any]], datasets.Features]:
    """How a data set's samples become rows, and their columns."""
    if hasattr(data, "users"):  # spectrograms
        classes = [data.users.get(k, f"class_{k}") for k in range(data.num_classes)]
        return (lambda index: spectrogram_row(data.items[index])), spectrogram_features(classes)
    return (lambda index: map_row(data[index])), map_features()


def _is_whole(levels: np.ndarray) -> bool:
    if levels.dtype == np.uint8:
        return True
    if not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > 255:
        return False
    return float(np.abs(levels - np.rint(levels)).max()) < WHOLE


def _picture(plane: np.ndarray, whole: bool) -> dict[str, Any]:
    """A plane as an encoded picture: PNG of whole gray levels, or TIFF of float32."""
    from PIL import Image

    buffer = io.BytesIO()
    if whole:
        Image.fromarray(np.rint(plane).astype(np.uint8)).save(buffer, "png")
    else:
        Image.fromarray(np.asarray(plane, np.float32)).save(buffer, "tiff")
    return {"bytes": buffer.getvalue(), "path": None}


def _mask(picture: Any, name: str) -> np.ndarray:
    """A boolean plane of a picture. Many transmitters share a mask, so it is decoded once."""
    data = picture.get("bytes") if isinstance(picture, dict) else None
    if data is not None:
        try:
            bits, shape = _packed_mask(data)
            return np.unpackbits(bits, count=shape[0] * shape[1]).view(bool).reshape(shape)
        except ValueError:
            pass  # it fails below as well, where it is known whose it is
    return _plane(picture, name) > 127


@lru_cache(maxsize=REMEMBERED)
def _packed_mask(data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    mask = _plane({"bytes": data}, "a mask") > 127
    return np.packbits(mask), mask.shape


@lru_cache(maxsize=REMEMBERED)
def _outlines(text: str) -> tuple[tuple[np.ndarray, ...], ...]:
    outlines = tuple(tuple(np.array(ring) for ring in rings) for rings in json.loads(text))
    for ring in (ring for rings in outlines for ring in rings):
        ring.flags.writeable = False  # scenes share them
    return outlines


def _plane(picture: Any, name: str) -> np.ndarray:
    """uint8 gray levels or float32 values of an encoded picture (or of one that `datasets` has decoded already)."""
    from PIL import Image

    if not isinstance(picture, dict):
        return read_image(picture)
    data = picture.get("bytes")
    if data is None:
        return read_image(picture["path"])
    plane = decode_gray(data, name)
    if plane is not None:
        return plane
    try:
        return read_image(Image.open(io.BytesIO(data)))
    except OSError as error:
        raise ValueError(f"{name} is damaged: {error}") from None

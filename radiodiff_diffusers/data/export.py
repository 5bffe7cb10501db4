"""Any data set of radio maps as a folder in RadioMapSeer's layout, for programs that read nothing else."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import fields
from itertools import count
from pathlib import Path

import numpy as np

from ..scene import RadioMap, Scene
from .radiomapseer_writer import rings_of, write_whole

logger = logging.getLogger(__name__)

_MAP_AND_TRANSMITTER = re.compile(r"(\d+)_(\d+)")


def export_radiomapseer(
    pairs: Iterable[tuple[Scene, RadioMap]], folder: str | Path, simulation: str = "DPM"
) -> dict[str, int]:
    """Write gain/, png/buildings_complete/, png/antennas/, png/cars/ and polygon/ of all pairs.

    Names like `12_3` (map 12, transmitter 3) are kept; other scenes are numbered, the same buildings being the same
    map. A sample that comes twice is written once; two that would have one name are refused, as is a map whose
    buildings or cars differ from one transmitter to the next, for it has one mask. Maps become 8-bit gray on their own
    scale. Transmitters are written as pictures, to the nearest pixel; there is no antenna/ folder, for a list of
    transmitters has no room for ones that are not there. What the layout leaves open stands in manifest.json, where
    `RadioMapSeer` finds it: the masks' raster, the gray scale, and metres per pixel and carrier where all maps share
    them. Maps with different scales or rasters do not go into one folder.

    Returns:
        `{"maps", "samples"}`.
    """
    from PIL import Image

    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder")
    numbers: dict[bytes, int] = {}  # of maps, by what stands there
    masks: dict[int, bytes] = {}
    written: dict[str, bytes] = {}  # what each sample's map is, by its name
    common: dict[str, set] = {"raster": set(), "gain_scale": set(), "metres_per_pixel": set(), "frequency_hz": set()}

    def save(name: str, plane: np.ndarray) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(plane).save(path)

    for scene, radio_map in pairs:
        layout = _digest(scene.buildings, scene.cars)
        match = _MAP_AND_TRANSMITTER.fullmatch(scene.name or "")
        if match:
            map_id, tx_id = (int(v) for v in match.groups())
        else:
            if layout not in numbers:
                numbers[layout] = next(k for k in count() if k not in masks)
            map_id = numbers[layout]
            tx_id = next(k for k in count() if f"{map_id}_{k}" not in written)
        common["raster"].add(scene.raster)
        common["gain_scale"].add(radio_map.scale)
        common["metres_per_pixel"].add(scene.metres_per_pixel)
        common["frequency_hz"].add(scene.frequency_hz)
        if None in common["raster"] or len(common["raster"]) > 1 or len(common["gain_scale"]) > 1:
            raise ValueError(
                f"{scene.name or f'sample {len(written)}'}: RadioMapSeer's layout has one gray scale and one raster "
                "(radiomapseer or exact) for all maps, and this one differs: use several folders, or Parquet"
            )
        name, gray = f"{map_id}_{tx_id}", np.rint(radio_map.gray).astype(np.uint8)
        if masks.get(map_id, layout) != layout:
            raise ValueError(
                f"{name}: other buildings or cars than in the other samples of map {map_id}, for which RadioMapSeer's "
                "layout has one mask: use Parquet"
            )
        content = _digest(gray, None)
        if name in written:
            if written[name] != content:
                raise ValueError(f"{name} comes twice, with different radio maps: use several folders, or Parquet")
            continue  # splits may overlap
        written[name] = content
        if map_id not in masks:
            masks[map_id] = layout
            save(f"png/buildings_complete/{map_id}.png", scene.buildings.astype(np.uint8) * 255)
            if scene.cars is not None:
                save(f"png/cars/{map_id}.png", scene.cars.astype(np.uint8) * 255)
            if scene.polygons is not None:
                rings = json.dumps(rings_of(scene.polygons, scene.shape[0]))
                write_whole(folder / f"polygon/buildings_complete/{map_id}.json", rings.encode())
        dot = np.zeros(scene.shape, np.uint8)
        scene.require_transmitter("RadioMapSeer's layout")
        dot[scene.transmitter_pixel] = 255
        save(f"png/antennas/{name}.png", dot)
        save(f"gain/{simulation}/{name}.png", gray)
    known = {name: next(iter(values)) for name, values in common.items() if len(values) == 1}
    for name in ("metres_per_pixel", "frequency_hz"):
        if len(common[name]) > 1:
            logger.warning("RadioMapSeer's layout has no room for a %s of each map: it is not written", name)
    if "gain_scale" in known:
        scale = known["gain_scale"]
        known["gain_scale"] = {f.name: getattr(scale, f.name) for f in fields(scale)}
    manifest = {"what": "radio maps in RadioMapSeer's layout, written by radiodiff data export", "parameters": known}
    write_whole(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
    return {"maps": len(masks), "samples": len(written)}


def _digest(plane: np.ndarray, other: np.ndarray | None) -> bytes:
    digest = hashlib.blake2b(repr(plane.shape).encode() + plane.tobytes(), digest_size=16)
    digest.update(b"" if other is None else other.tobytes())
    return digest.digest()

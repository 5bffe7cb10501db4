"""RadioMapSeer's files: where they lie and how they are read. `radiomapseer.py` makes a data set of them."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import as_rings, clean_polygons, rasterize
from ..scene import GainScale
from .png import read_gray

TREE = """\
  {root}/
    antenna/0.json                           the transmitters of map 0: [[x, y], ...], column x, row (height - 1 - y)
    gain/DPM/0_0.png                         map 0, transmitter 0; also IRT2, IRT4, carsDPM, carsIRT2, carsIRT4
    png/buildings_complete/0.png             building mask of map 0
    png/buildings_missing1/1/0.png           1 to 4 buildings missing, versions 1 to 6   (only for missing=...)
    png/antennas/0_0.png                     one bright pixel                            (only where antenna/ is
    absent) png/cars/0.png                           parked cars                                 (only with cars)
    polygon/buildings_complete/0.json        closed outlines in metres, y up             (only for layout="polygon")
    polygon/buildings_and_cars/0.json        the same with cars                          (only with cars and
    polygons)"""

LAYOUTS = ("png", "polygon")
REMEMBERED = 2048  # masks and the like: 64 KB each, so that a whole set's fit


class RadioMapSeerFolder:
    """Reads the files of one RadioMapSeer folder and remembers what many samples share (masks, outlines,
    transmitters).
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._memory: OrderedDict[tuple, Any] = OrderedDict()
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: no such folder. Expected RadioMapSeer:\n{TREE.format(root=self.root)}")

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_memory": OrderedDict()}  # a data loader's worker starts with an empty memory

    def require(self, *folders: str) -> None:
        """Fail where folders are missing, naming them, with the tree that is expected."""
        missing = [folder for folder in folders if not (self.root / folder).is_dir()]
        if missing:
            names = " and ".join(f"{folder}/" for folder in missing)
            raise ValueError(f"{self.root} lacks {names}. Expected RadioMapSeer:\n{TREE.format(root=self.root)}")

    def gain_files(self, simulation: str) -> dict[int, list[int]]:
        """Map number -> its transmitters, as they lie in gain/`simulation`."""
        self.require("gain", f"gain/{simulation}")
        return numbered_pairs(self.root / "gain" / simulation)

    def gain(self, simulation: str, map_id: int, tx_id: int) -> np.ndarray:
        """(H, W) uint8 gray levels."""
        return self._read(f"gain/{simulation}/{map_id}_{tx_id}.png", read_gray)

    def mask(self, folder: str, map_id: int) -> np.ndarray:
        """A boolean mask under png/; do not write into it, it is shared."""
        name = f"png/{folder}/{map_id}.png"
        return self._remember(("mask", folder, map_id), lambda: self._read(name, read_gray) > 127)

    def measured_places(self, map_id: int) -> np.ndarray:
        """The original's measurement masks, png/half_mask/mask_M.png."""
        name = f"png/half_mask/mask_{map_id}.png"
        return self._remember(("half_mask", map_id), lambda: self._read(name, read_gray) > 0)

    def k2(self, simulation: str, map_id: int, tx_id: int) -> np.ndarray:
        """(H, W) float32 0..1 of gain/`simulation`_k2_neg_norm (for cars also under the name that RadioDiff-k² looks
        for).
        """
        names = [f"{simulation}_k2_neg_norm"]
        if simulation.startswith("cars"):
            names.append(f"{simulation.removeprefix('cars')}CAR_k2_neg_norm")
        present = [name for name in names if (self.root / "gain" / name).is_dir()]
        if not present:
            raise ValueError(
                f"{self.root} has no k2 maps (gain/{names[0]}/): make them with radiodiff_diffusers.data.k2"
            )
        return self._read(f"gain/{present[0]}/{map_id}_{tx_id}.png", read_gray) * np.float32(1 / 255)

    def size(self, map_id: int, buildings: str = "buildings_complete") -> tuple[int, int]:
        """(height, width) of a map: its mask's, or RadioMapSeer's where there is no mask."""
        path = self.root / "png" / buildings / f"{map_id}.png"
        if ("mask", buildings, map_id) in self._memory or path.is_file():
            return self.mask(buildings, map_id).shape
        return self.manifest().get("size", (256, 256))

    def manifest(self) -> dict[str, Any]:
        """What `radiodiff simulate` or `export` wrote down of a set, as fields of a `Scene`, `size`, `raster` and
        `gain_scale`; empty for the real one.
        """

        def read() -> dict[str, Any]:
            if not (self.root / "manifest.json").is_file():
                return {}
            parameters = self._read("manifest.json", _load_json).get("parameters", {})
            known = {k: float(parameters[k]) for k in ("metres_per_pixel", "frequency_hz") if k in parameters}
            if "size" in parameters:
                known["size"] = (int(parameters["size"]),) * 2
            known["raster"] = parameters.get("raster", "radiomapseer")
            if "gain_scale" in parameters:
                known["gain_scale"] = GainScale(**{k: float(v) for k, v in parameters["gain_scale"].items()})
            return known

        return self._remember(("manifest",), read)

    def transmitter(self, map_id: int, tx_id: int, height: int) -> tuple[int, int]:
        """(column, row) of a transmitter, from antenna/M.json or else from the bright pixel of
        png/antennas/M_T.png.
        """
        if self._remember(("antenna",), (self.root / "antenna").is_dir):
            name = f"antenna/{map_id}.json"
            places = self._remember(("antenna", map_id), lambda: self._read(name, _load_transmitters))
            if not 0 <= tx_id < len(places):
                raise ValueError(f"{self.root / name} has no transmitter {tx_id}: it lists 0 to {len(places) - 1}")
            x, y = places[tx_id]
            return x, height - 1 - y
        self.require("png/antennas")
        name = f"png/antennas/{map_id}_{tx_id}.png"
        picture = self._read(name, read_gray)
        bright = np.argwhere(picture > 127)
        if len(bright) != 1:
            raise ValueError(f"{self.root / name} must have one bright pixel, the transmitter; it has {len(bright)}")
        row, column = (int(v) for v in bright[0])
        return column, row

    def outlines(self, folder: str, map_id: int, height: int) -> tuple[tuple[np.ndarray, ...], ...]:
        """Closed outlines under polygon/ in pixels of the gain's raster, self-intersections made simple."""

        def read() -> tuple[tuple[np.ndarray, ...], ...]:
            name = f"polygon/{folder}/{map_id}.json"
            polygons = _to_pixels(self._read(name, _load_json), height, self.root / name)
            return tuple(
                tuple(np.concatenate([ring, ring[:1]]) for ring in rings) for rings in clean_polygons(polygons)
            )

        return self._remember(("outlines", folder, map_id), read)

    def drawn(self, folder: str, map_id: int, shape: tuple[int, int]) -> np.ndarray:
        """Outlines under polygon/ as a boolean mask on the gain's raster."""

        def draw() -> np.ndarray:
            name = f"polygon/{folder}/{map_id}.json"
            return rasterize(_to_pixels(self._read(name, _load_json), shape[0], self.root / name), shape)

        return self._remember(("drawn", folder, map_id, shape), draw)

    def drawn_cars(self, map_id: int, shape: tuple[int, int]) -> np.ndarray:
        """The cars on the gain's raster: what buildings_and_cars has over buildings_complete; or png/cars where there
        is none.
        """
        if not (self.root / "polygon/buildings_and_cars").is_dir():
            return self.mask("cars", map_id)

        def draw() -> np.ndarray:
            names = [f"polygon/buildings_{kind}/{map_id}.json" for kind in ("and_cars", "complete")]
            together, buildings = (_ring_keys(self._read(name, _load_json), self.root / name) for name in names)
            cars = [ring for ring in together if ring not in set(buildings)]
            return rasterize(_to_pixels(cars, shape[0], self.root / names[0]), shape)

        return self._remember(("cars", map_id, shape), draw)

    def _read(self, name: str, reader: Callable[[str], Any]) -> Any:
        """One file; where it is missing, an error that says whether its whole folder is."""
        path = f"{self.root}/{name}"  # plain text: this is done for every sample, and path objects are slow
        try:
            return reader(path)
        except (ValueError, OSError):
            if Path(path).is_file():
                raise
            if "/" in name:
                self.require(name.rpartition("/")[0])
            raise ValueError(
                f"{path}: no such file; `radiodiff data check {self.root}` lists all that is missing"
            ) from None

    def _remember(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        value = self._memory[key] = make()
        if len(self._memory) > REMEMBERED:
            self._memory.popitem(last=False)
        return value


def numbered_pairs(folder: Path) -> dict[int, list[int]]:
    """Map number -> transmitters of the files M_T.png in a folder, both in order; other names are passed over."""
    pairs: dict[int, list[int]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, dot, suffix = entry.name.rpartition(".")
            first, _, second = stem.partition("_")
            if dot and suffix == "png" and first.isdigit() and second.isdigit():
                pairs.setdefault(int(first), []).append(int(second))
    return {map_id: sorted(pairs[map_id]) for map_id in sorted(pairs)}


def numbered_files(folder: Path, suffix: str) -> list[int]:
    """The numbers N of the files N.suffix in a folder, in order; other names are passed over."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        stems = [e.name.removesuffix(suffix) for e in entries if e.name.endswith(suffix)]
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _load_json(path: str) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _load_transmitters(path: str) -> list[tuple[int, int]]:
    places = _load_json(path)
    try:
        return [(int(x), int(y)) for x, y in places]
    except (TypeError, ValueError):
        raise ValueError(f"{path} is damaged: expected a list of [x, y] pairs") from None


def _to_pixels(rings: Any, height: int, path: Path) -> list[tuple[np.ndarray, ...]]:
    """Rings of (x, y) metres, y up, to pixels of the gain's raster, on which polygon point (x, y) is pixel (x - 1,
    height - y).
    """
    try:
        return [tuple(ring * (1, -1) + (-1, height) for ring in as_rings(polygon)) for polygon in rings]
    except (TypeError, ValueError, IndexError):
        raise ValueError(f"{path} is damaged: expected outlines, each a list of [x, y]") from None


def _ring_keys(rings: Any, path: Path) -> list[tuple]:
    try:
        return [tuple((x, y) for x, y in ring) for ring in rings]
    except (TypeError, ValueError):
        raise ValueError(f"{path} is damaged: expected outlines, each a list of [x, y]") from None

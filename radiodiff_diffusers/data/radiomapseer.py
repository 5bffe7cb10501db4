"""RadioMapSeer: radio maps of 701 city maps with 80 transmitters each, as a data set of (`Scene`, `RadioMap`).

    train = RadioMapSeer("RadioMapSeer", "train")                       # dominant-path maps (DPM), default split
    scene, radio_map = train[0]
    loader = DataLoader(train, 16, collate_fn=partial(collate, condition_channels=["buildings", "transmitter",
    "buildings"]))

Folders that `radiodiff simulate` wrote are read the same way. Two habits of the original loaders are not repeated:
with cars they divide gray levels by 256 (so the brightest input is 0.992), and with k2 they feed masks unscaled
(-1..509); here every channel lies in -1..1 and gray 255 is always 1.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..scene import GainScale, RadioMap, Scene
from .measurements import PLACES, measurement_places, take
from .plane_cache import PlaneCache
from .radiomapseer_files import LAYOUTS, RadioMapSeerFolder
from .splits import choose_maps, split_maps, whole_numbers

logger = logging.getLogger(__name__)

MOST_MISSING = 4
MISSING_VERSIONS = 6


def read_scene(
    root: str | Path | RadioMapSeerFolder,
    map_id: int,
    tx_id: int | None = None,
    layout: str = "png",
    *,
    cars: bool = False,
    missing: int = 0,
    version: int = 1,
) -> Scene:
    """One scene of a RadioMapSeer folder. `gain/` is not needed, nor any folder that the layout does not use.

    Args:
        root: the folder.
        map_id, tx_id: map and transmitter; without a transmitter the scene has none.
        layout: `"png"` reads the building mask. `"polygon"` reads the outlines, gives them to the scene in pixels and
            draws the mask on the gain maps' own raster, which the PNG masks miss by half a pixel.
        cars: add the parked cars.
        missing, version: the layout with 1 to 4 buildings missing, in version 1 to 6.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}: use one of {', '.join(LAYOUTS)}")
    folder = root if isinstance(root, RadioMapSeerFolder) else RadioMapSeerFolder(root)
    kind = _buildings_folder(missing, version)
    polygons = None
    if layout == "png":
        buildings = folder.mask(kind, map_id)
        parked = folder.mask("cars", map_id) if cars else None
    else:
        shape = folder.size(map_id)
        polygons = folder.outlines(kind, map_id, shape[0])
        buildings = folder.drawn(kind, map_id, shape)
        parked = folder.drawn_cars(map_id, shape) if cars else None
    known = {name: value for name, value in folder.manifest().items() if name not in ("size", "raster", "gain_scale")}
    exact = layout == "polygon" or folder.manifest().get("raster") == "exact"
    return Scene(
        buildings,
        transmitter=None if tx_id is None else folder.transmitter(map_id, tx_id, buildings.shape[0]),
        cars=parked,
        raster="exact" if exact else "radiomapseer",
        polygons=polygons,
        name=f"{map_id}" if tx_id is None else f"{map_id}_{tx_id}",
        **known,
    )


class RadioMapSeer:
    """(`Scene`, `RadioMap`) of every map and transmitter in one split.

    Args:
        root: the folder.
        split (`str`, defaults to `"train"`): `"train"`, `"val"`, `"test"` or `"all"`.
        scheme (`str`, defaults to `"corrected"`): `"corrected"`, `"radiounet"` or `"radiodiff"`, see
            `radiodiff_diffusers.data.splits`.
        simulation (`str`, defaults to `"DPM"`): `"DPM"`, `"IRT2"`, `"IRT4"` (transmitters 0 and 1 only), any other
            folder under gain/, or `"rand"`: a mixture of DPM and IRT2 gray levels whose share of IRT2 is drawn for
            each sample and epoch.
        irt2_max_weight (`float`, defaults to 1.0): the largest share of IRT2 in `"rand"`.
        cars_in_map (`bool`): the maps with parked cars (carsDPM ...).
        cars_in_input (`bool`): tell the scene where the cars are.
        layout (`str`, defaults to `"png"`): `"png"` or `"polygon"`, see `read_scene`; `"mixed"`: one of the two, drawn
            for each sample and epoch, for models that are to know both.
        missing (`int` or `"random"`, defaults to 0): so many buildings (1 to 4, or drawn for each sample) are missing
            in the scene, though not in the map.
        version (`int`, *optional*): which of the six versions of a layout with missing buildings; drawn for each
            sample where left out.
        measurements (`str`, *optional*): gives the scene measurements taken from its map: `"random"` places, along
            building `"edges"`, beside building corners (`"vertices"`), or `"mask"` for the original's own masks
            (png/half_mask). Places are the same for all transmitters of a map and in all epochs.
        num_measurements (`int` or `(low, high)`, defaults to 300): how many; of a range, a number is drawn for each
            sample and epoch.
        k2 (`bool`): read k2 maps (gain/DPM_k2_neg_norm ...) into the scene. They were made from the very maps to be
            predicted: see `radiodiff_diffusers.data.k2` before you report figures.
        maps, transmitters (*optional*): only these maps and transmitters.
        seed (`int`, defaults to 0): decides everything that is drawn, with the epoch (`set_epoch`).
        strict (`bool`): fail where samples of the split are missing on disk, instead of logging how many.
        cache (`PlaneCache`, *optional*): keeps costly channels on disk.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        scheme: str = "corrected",
        simulation: str = "DPM",
        irt2_max_weight: float = 1.0,
        cars_in_map: bool = False,
        cars_in_input: bool = False,
        layout: str = "png",
        missing: int | str = 0,
        version: int | None = None,
        measurements: str | None = None,
        num_measurements: int | tuple[int, int] = 300,
        k2: bool = False,
        maps: Iterable[int] | None = None,
        transmitters: Iterable[int] | None = None,
        seed: int = 0,
        strict: bool = False,
        cache: PlaneCache | None = None,
    ) -> None:
        self.folder = RadioMapSeerFolder(root)
        self.split, self.scheme, self.layout, self.seed, self.cache = split, scheme, layout, seed, cache
        self.cars_in_input, self.missing, self.version, self.k2 = cars_in_input, missing, version, k2
        self.measurements, self.num_measurements = measurements, _as_range(num_measurements)
        self.irt2_max_weight = irt2_max_weight
        prefix = "cars" if cars_in_map else ""
        self.simulations = [f"{prefix}{name}" for name in (("DPM", "IRT2") if simulation == "rand" else (simulation,))]
        self.epoch = 0
        self._places: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._check_options()
        maps, transmitters = whole_numbers(maps, "maps"), whole_numbers(transmitters, "transmitters")
        self.samples = self._find_samples(maps, transmitters, strict)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Scene, RadioMap]:
        map_id, tx_id = self.samples[index]
        rng = np.random.default_rng([self.seed, self.epoch, map_id, tx_id])
        missing = int(rng.integers(1, MOST_MISSING + 1)) if self.missing == "random" else self.missing
        version = self.version or int(rng.integers(1, MISSING_VERSIONS + 1))
        layout = str(rng.choice(LAYOUTS)) if self.layout == "mixed" else self.layout
        scene = read_scene(
            self.folder, map_id, tx_id, layout, cars=self.cars_in_input, missing=missing, version=version
        )
        gray = self._gray(map_id, tx_id, rng)
        if gray.shape != scene.shape:
            (height, width), (h, w) = scene.shape, gray.shape
            raise ValueError(
                f"map {map_id}_{tx_id} of {self.folder.root} is {w} x {h} pixels, its buildings are {width} x {height}"
            )
        scale = self.folder.manifest().get("gain_scale", GainScale.RADIOMAPSEER)
        radio_map = RadioMap.from_gray(gray, scale, metres_per_pixel=scene.metres_per_pixel)
        if self.measurements:
            rows, columns = self._measured_places(map_id, scene)
            count = int(rng.integers(self.num_measurements[0], self.num_measurements[1] + 1))
            scene.measurements = take(radio_map.gain_db, rows[:count], columns[:count])
        if self.k2:
            scene.k2 = self.folder.k2(self.simulations[0], map_id, tx_id)
        if self.cache is not None:
            self.cache.fill(scene)
        return scene, radio_map

    def set_epoch(self, epoch: int) -> None:
        """Draw anew what is drawn for each sample (mixtures, missing buildings, numbers of measurements)."""
        self.epoch = epoch

    def ids(self, index: int) -> tuple[int, int]:
        """Map and transmitter of a sample."""
        return self.samples[index]

    def files(self, index: int) -> str:
        """The file of a sample's map, as reports name it."""
        map_id, tx_id = self.samples[index]
        return f"gain/{self.simulations[0]}/{map_id}_{tx_id}.png"

    def _gray(self, map_id: int, tx_id: int, rng: np.random.Generator) -> np.ndarray:
        grays = [self.folder.gain(simulation, map_id, tx_id) for simulation in self.simulations]
        if len(grays) == 1:
            return grays[0]
        share = np.float32(rng.uniform(0.0, self.irt2_max_weight))
        return (1 - share) * grays[0] + share * grays[1]

    def _measured_places(self, map_id: int, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        if map_id not in self._places:
            if self.measurements == "mask":
                rows, columns = np.nonzero(self.folder.measured_places(map_id))
                order = np.random.default_rng([self.seed, map_id]).permutation(len(rows))
                self._places[map_id] = rows[order], columns[order]
            else:
                # of the complete buildings in one layout, so that the same places are measured whatever was drawn
                full = scene
                if self.missing or self.layout == "mixed":
                    full = read_scene(self.folder, map_id, layout="png" if self.layout == "png" else "polygon")
                outlines = full.polygons
                if outlines is None and (self.folder.root / f"polygon/buildings_complete/{map_id}.json").is_file():
                    outlines = self.folder.outlines("buildings_complete", map_id, full.shape[0])
                self._places[map_id] = measurement_places(
                    full.buildings, self.measurements, [self.seed, map_id], outlines
                )
        return self._places[map_id]

    def _find_samples(
        self, maps: list[int] | None, transmitters: list[int] | None, strict: bool
    ) -> list[tuple[int, int]]:
        files = [self.folder.gain_files(simulation) for simulation in self.simulations]
        present = {
            k: sorted(set.intersection(*(set(f[k]) for f in files))) for k in files[0] if all(k in f for f in files)
        }
        wanted = maps if maps is not None else choose_maps(list(present), self.split, self.scheme)
        allowed = None if transmitters is None else set(transmitters)
        samples = [(k, t) for k in wanted for t in present.get(k, ()) if allowed is None or t in allowed]
        if not samples and (maps is not None or allowed is not None):
            named = [f"{k} {v}" for k, v in (("maps", maps), ("transmitters", transmitters)) if v is not None]
            where = f"{self.folder.root}/gain/{self.simulations[0]}"
            raise ValueError(f"{where} has {len(present)} maps, none of those asked for: {', '.join(named)}")
        if not samples:
            raise ValueError(
                f"{self.folder.root}/gain/{self.simulations[0]} has {len(present)} maps, none of them in split "
                f"{self.split!r} of scheme {self.scheme!r}: use split='all', or name maps=[...]"
            )
        self._report_gaps(wanted, present, maps is not None, strict)
        return samples

    def _report_gaps(self, wanted: list[int], present: dict[int, list[int]], named: bool, strict: bool) -> None:
        real = not self.folder.manifest() and self.split != "all"
        expected = set(wanted) if named or not real else set(split_maps(self.split, self.scheme))
        absent = len(expected - set(present))
        full = max(len(present[k]) for k in present)
        short = sum(len(present[k]) < full for k in wanted if k in present)
        if absent or short:
            line = (
                f"{self.folder.root}/gain/{self.simulations[0]}: of the {len(expected)} maps of split {self.split!r}, "
                f"{absent} are missing and {short} lack transmitters; "
                f"`radiodiff data check {self.folder.root}` lists them"
            )
            if strict:
                raise ValueError(line)
            logger.warning("%s", line)

    def _check_options(self) -> None:
        if self.layout not in (*LAYOUTS, "mixed"):
            raise ValueError(f"unknown layout {self.layout!r}: use one of {', '.join((*LAYOUTS, 'mixed'))}")
        if self.missing != "random":
            _buildings_folder(self.missing, self.version or 1)
        elif self.version is not None:
            _buildings_folder(1, self.version)
        if self.measurements is not None and self.measurements not in (*PLACES, "mask"):
            raise ValueError(f"unknown measurements {self.measurements!r}: use one of {', '.join((*PLACES, 'mask'))}")
        if not 0 <= self.irt2_max_weight <= 1:
            raise ValueError(f"irt2_max_weight must lie in 0..1; got {self.irt2_max_weight}")
        if self.k2 and len(self.simulations) > 1:
            raise ValueError("k2 maps belong to one simulation: they cannot go with simulation='rand'")
        kinds = {"png": ("png",), "polygon": ("polygon",), "mixed": ("png", "polygon")}[self.layout]
        needed = []
        if self.missing:
            numbers = range(1, MOST_MISSING + 1) if self.missing == "random" else (self.missing,)
            versions = range(1, MISSING_VERSIONS + 1) if self.version is None else (self.version,)
            needed += [f"{kind}/{_buildings_folder(n, v)}" for kind in kinds for n in numbers for v in versions]
        else:
            needed += [f"{kind}/buildings_complete" for kind in kinds]
        if self.cars_in_input and ("png" in kinds or not (self.folder.root / "polygon/buildings_and_cars").is_dir()):
            needed.append("png/cars")
        if self.measurements == "mask":
            needed.append("png/half_mask")
        if not (self.folder.root / "antenna").is_dir() and not (self.folder.root / "png/antennas").is_dir():
            needed.append("antenna")
        self.folder.require(*needed)


def _buildings_folder(missing: int, version: int) -> str:
    if not missing:
        return "buildings_complete"
    if isinstance(missing, bool) or not (isinstance(missing, int) and 1 <= missing <= MOST_MISSING):
        raise ValueError(f"missing must be 0 to {MOST_MISSING} buildings, or 'random'; got {missing!r}")
    if not 1 <= version <= MISSING_VERSIONS:
        raise ValueError(f"version must be 1 to {MISSING_VERSIONS}; got {version!r}")
    return f"buildings_missing{missing}/{version}"


def _as_range(count: int | tuple[int, int]) -> tuple[int, int]:
    try:
        low, high = (count, count) if isinstance(count, int) else (int(v) for v in count)
    except (TypeError, ValueError):
        low, high = 0, 0
    if not 0 < low <= high:
        raise ValueError(f"num_measurements must be a number above 0, or (low, high); got {count!r}")
    return low, high

"""The ICASSP 2025 indoor challenge's files: where they lie and how they are read. `icassp2025.py` makes a data set of
them.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..scene import GainScale, RadioMap, Scene
from .splits import whole_numbers

logger = logging.getLogger(__name__)

TREE = """\
  {root}/
    Inputs/Task_1_ICASSP/B1_Ant1_f1_S0.png      red: reflectance in dB, green: transmittance in dB, blue: distance in m
    Outputs/Task_1_ICASSP/B1_Ant1_f1_S0.png     path loss in dB
    Positions/Positions_B1_Ant1_f1.csv          X, Y, Azimuth; row 0 is S0
    Radiation_Patterns/Ant1_Pattern.csv         360 gains in dB
    Building_Details/B1_Details.csv             W and H of the building's maps in pixels (checked where it is there)
  and the same for Task_2_ICASSP (three frequencies) and Task_3_ICASSP (five antennas as well)"""

METRES_PER_PIXEL = 0.25
HEIGHT = 1.5
FREQUENCIES = {1: 868e6, 2: 1.8e9, 3: 3.5e9}
TASKS = (1, 2, 3)
# The blue channel holds whole metres: a transmitter whose distances differ by more than this on average is another
# one.
MOST_DISTANCE_ERROR = 1.0

_NAME = re.compile(r"B(\d+)_Ant(\d+)_f(\d+)_S(\d+)")


class Name(NamedTuple):
    """What a file name says: `B1_Ant2_f3_S4` is building 1, antenna 2, frequency 3, sample 4."""

    building: int
    antenna: int
    frequency: int
    sample: int

    def __str__(self) -> str:
        return f"B{self.building}_Ant{self.antenna}_f{self.frequency}_S{self.sample}"

    @classmethod
    def parse(cls, stem: str) -> Name | None:
        match = _NAME.fullmatch(stem)
        return cls(*(int(v) for v in match.groups())) if match else None


class ICASSP2025Folder:
    """Reads the files of one ICASSP 2025 folder and remembers the small ones."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._memory: dict[Path, Any] = {}
        missing = [
            f"{name}/" for name in ("Inputs", "Positions", "Radiation_Patterns") if not (self.root / name).is_dir()
        ]
        if missing:
            what = "no such folder" if not self.root.is_dir() else f"lacks {' and '.join(missing)}"
            raise ValueError(f"{self.root}: {what}. Expected the ICASSP 2025 set:\n{TREE.format(root=self.root)}")

    def names(self, task: int, kind: str = "Inputs") -> list[Name]:
        """The samples of a task, in numeric order."""
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}: use one of {', '.join(map(str, TASKS))}")
        folder = self.root / kind / f"Task_{task}_ICASSP"
        if not folder.is_dir():
            raise ValueError(
                f"{self.root} lacks {kind}/Task_{task}_ICASSP/. Expected the ICASSP 2025 set:\n"
                f"{TREE.format(root=self.root)}"
            )
        found = (Name.parse(path.stem) for path in folder.glob("*.png"))
        return sorted(name for name in found if name is not None)

    def input_path(self, name: Name, task: int) -> Path:
        return self.root / "Inputs" / f"Task_{task}_ICASSP" / f"{name}.png"

    def output_path(self, name: Name, task: int) -> Path:
        return self.root / "Outputs" / f"Task_{task}_ICASSP" / f"{name}.png"

    def positions_path(self, name: Name) -> Path:
        return self.root / "Positions" / f"Positions_B{name.building}_Ant{name.antenna}_f{name.frequency}.csv"

    def pattern_path(self, antenna: int) -> Path:
        return self.root / "Radiation_Patterns" / f"Ant{antenna}_Pattern.csv"

    def details_path(self, building: int) -> Path:
        return self.root / "Building_Details" / f"B{building}_Details.csv"

    def size(self, building: int) -> tuple[int, int] | None:
        """(height, width) in pixels that the set says all maps of a building have; `None` where it has no details."""
        path = self.details_path(building)
        if path not in self._memory:
            self._memory[path] = _load_size(path) if path.is_file() else None
        return self._memory[path]

    def position(self, name: Name) -> tuple[float, float, float]:
        """X, Y and azimuth as the file has them."""
        path = self.positions_path(name)
        if path not in self._memory:
            self._memory[path] = _load_positions(path)
        rows = self._memory[path]
        if name.sample >= len(rows):
            raise ValueError(f"{path} has {len(rows)} rows, none for sample {name.sample}")
        return rows[name.sample]

    def pattern(self, antenna: int) -> np.ndarray:
        """360 gains in dB."""
        path = self.pattern_path(antenna)
        if path not in self._memory:
            self._memory[path] = _load_pattern(path)
        return self._memory[path]

    def scene(self, name: Name, task: int, frequency_hz: float | None = None) -> Scene:
        """One sample's scene. `frequency_hz` overrides what the name says (the challenge's test band f2 is 2.4
        GHz).
        """
        if frequency_hz is None:
            require_bands([name], {})
        reflectance, transmittance, distance = read_input(self.input_path(name, task))
        transmitter, azimuth = self.transmitter(name, distance)
        walls = (reflectance > 0) | (transmittance > 0)
        column, row = (int(np.floor(v + 0.5)) for v in transmitter)
        walls[row, column] = False  # some transmitters stand so close to a wall that its pixels cover them
        pattern = self.pattern(name.antenna)
        return Scene(
            walls,
            transmitter=transmitter,
            metres_per_pixel=METRES_PER_PIXEL,
            frequency_hz=frequency_hz or FREQUENCIES[name.frequency],
            transmitter_height=HEIGHT,
            receiver_height=HEIGHT,
            reflectance=reflectance,
            transmittance=transmittance,
            antenna_pattern=pattern if pattern.any() else None,
            azimuth=azimuth,
            name=str(name),
        )

    def transmitter(self, name: Name, distance: np.ndarray) -> tuple[tuple[float, float], float]:
        """Its pixel (x, y) and azimuth, by the position file and the distance channel together.

        The files' X and Y are column and row in some readings of the set and row and column in others. The distance
        channel decides, and stands in for a position that fits in neither order.
        """
        x, y, azimuth = self.position(name)
        height, width = distance.shape
        inside = [(a, b) for a, b in ((x, y), (y, x)) if 0 <= a <= width - 1 and 0 <= b <= height - 1]
        errors = [distance_error(distance, place) for place in inside]
        if errors and min(errors) <= MOST_DISTANCE_ERROR:
            return inside[int(np.argmin(errors))], azimuth
        rows, columns = np.nonzero(distance == distance.min())
        nearest = (float(np.rint(columns.mean())), float(np.rint(rows.mean())))
        if inside and distance_error(distance, nearest) > MOST_DISTANCE_ERROR:
            return inside[0], azimuth  # the blue channel holds no distances at all
        if not inside and distance_error(distance, nearest) > MOST_DISTANCE_ERROR:
            raise ValueError(f"{name}: its position ({x:g}, {y:g}) lies outside the map of {width} x {height} pixels")
        logger.warning("%s: position (%g, %g) does not fit the distance channel; used %s", name, x, y, nearest)
        return nearest, azimuth

    def pair(self, name: Name, task: int, frequency_hz: float | None = None) -> tuple[Scene, RadioMap]:
        """One sample's scene and map, which must be of one size."""
        scene, radio_map = self.scene(name, task, frequency_hz), self.radio_map(name, task)
        if radio_map.shape != scene.shape:
            (height, width), (h, w), known = scene.shape, radio_map.shape, self.size(name.building)
            right = f"; Building_Details says {known[1]} x {known[0]}" if known else ""
            raise ValueError(f"{name}: its output is {w} x {h} pixels, its input {width} x {height}{right}")
        return scene, radio_map

    def radio_map(self, name: Name, task: int) -> RadioMap:
        """One sample's path loss, as gain."""
        from .png import read_gray

        gray = read_gray(self.output_path(name, task))
        return RadioMap.from_gray(gray, scale=GainScale.INDOOR, metres_per_pixel=METRES_PER_PIXEL)


def read_bands(hertz: Mapping[Any, Any] | None) -> dict[int, float]:
    """Frequency number -> hertz as a user wrote it, such as {2: 2.4e9}, {"f2": "2.4e9"} or a line of YAML."""
    if hertz is not None and not isinstance(hertz, Mapping):
        raise ValueError(f"hertz must be frequency numbers with their hertz, such as {{2: 2.4e9}}; got {hertz!r}")
    bands = {}
    for number, value in (hertz or {}).items():
        try:
            band, frequency = int(str(number).removeprefix("f")), float(value)
        except (TypeError, ValueError):
            band, frequency = 0, 0.0
        if band < 1 or not 0 < frequency < float("inf"):
            raise ValueError(f"hertz takes a frequency number and its hertz, such as 2: 2.4e9; got {number}: {value}")
        if frequency < 1e6:
            raise ValueError(f"hertz takes hertz, not MHz or GHz, such as 2: 2.4e9; got {number}: {value}")
        bands[band] = frequency
    return bands


def require_bands(names: Iterable[Name], hertz: Mapping[int, float]) -> None:
    """One line where samples have a frequency that neither the set's documentation nor `hertz` knows."""
    for name in names:
        if name.frequency not in hertz and name.frequency not in FREQUENCIES:
            band = name.frequency
            raise ValueError(
                f"{name}: unknown frequency f{band}: pass hertz={{{band}: 2.4e9}}, or what it is "
                f"(radiodiff data arrange: --hertz {band}=2.4e9)"
            )


def select(
    names: Iterable[Name],
    buildings: Iterable[int] | None = None,
    antennas: Iterable[int] | None = None,
    frequencies: Iterable[int] | None = None,
) -> list[Name]:
    """Those of some samples that have one of these numbers; `None` takes all."""
    chosen = list(names)
    wanted = {"building": ("buildings", buildings), "antenna": ("antennas", antennas)}
    for field, (name, numbers) in (wanted | {"frequency": ("frequencies", frequencies)}).items():
        allowed = whole_numbers(numbers, name)
        if allowed is not None:
            chosen = [sample for sample in chosen if getattr(sample, field) in allowed]
    return chosen


def read_input(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reflectance and transmittance in dB, distance in metres: (H, W) float32 each."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode not in {"RGB", "RGBA"}:
                raise ValueError(f"{path} must be a picture of three channels; it is of mode {image.mode}")
            planes = np.asarray(image, np.float32)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not an image that can be read") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return planes[..., 0], planes[..., 1], planes[..., 2]


def distance_error(distance: np.ndarray, place: tuple[float, float]) -> float:
    """Mean difference in metres between a distance channel and the true distances from `place`, on every fourth
    pixel.
    """
    height, width = distance.shape
    across = (np.arange(0, width, 4) - place[0])[None, :]
    down = (np.arange(0, height, 4) - place[1])[:, None]
    metres = np.minimum(np.hypot(across, down) * METRES_PER_PIXEL, 255)
    return float(np.abs(distance[::4, ::4] - metres).mean())


def _load_positions(path: Path) -> list[tuple[float, float, float]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [{k.strip().lower(): v for k, v in row.items() if k} for row in csv.DictReader(file)]
        return [(float(row["x"]), float(row["y"]), float(row.get("azimuth") or 0)) for row in rows]
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{path} is damaged: expected columns X, Y, Azimuth with numbers") from None


def _load_size(path: Path) -> tuple[int, int]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            row = {k.strip().upper(): float(v) for k, v in next(csv.DictReader(file)).items() if k and k.strip()}
        width, height = row["W"], row["H"]
    except (KeyError, ValueError, TypeError, StopIteration):
        width = height = 0.5
    if width < 1 or height < 1 or width % 1 or height % 1:
        raise ValueError(f"{path} is damaged: expected columns W and H with whole numbers of pixels")
    return int(height), int(width)


def _load_pattern(path: Path) -> np.ndarray:
    try:
        empty = path.stat().st_size == 0  # of which numpy would warn
        values = np.zeros((0, 1)) if empty else np.genfromtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    except (FileNotFoundError, OSError):
        raise ValueError(f"{path}: no such file") from None
    except ValueError:
        values = np.zeros((0, 1))
    gains = values[:, -1][np.isfinite(values[:, -1])] if values.size else values.ravel()  # a header reads as NaN
    if gains.shape != (360,):
        raise ValueError(f"{path} is damaged: expected 360 gains, one a degree; it has {len(gains)}")
    return gains.astype(np.float32)

"""The two plain things everything here works on: a `Scene` (what is known of a place) and a `RadioMap` (what is
wanted).

Coordinates are pixels, x to the right and y down, and pixel centres lie at whole numbers: the transmitter `(3, 5)`
stands in the middle of column 3, row 5. Gains are dB, heights and distances metres, angles degrees.
"""

from __future__ import annotations

import json
from dataclasses import InitVar, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MIN_SIDE = 8
STEP = np.float32(1 / 32767)  # what a channel in [-1, 1] kept as 16-bit whole numbers counts in
# A scene's scale, carrier and heights.
POSITIVE_NUMBERS = (
    "metres_per_pixel",
    "frequency_hz",
    "transmitter_height",
    "receiver_height",
    "building_height",
    "car_height",
)
# What of a scene lies at certain pixels: a crop has its own.
DRAWN_FIELDS = {
    "buildings",
    "transmitter",
    "cars",
    "reflectance",
    "transmittance",
    "measurements",
    "k2",
    "polygons",
}
MAP_ENDINGS = (".png", ".npz", ".tif", ".tiff")
MAX_PIXELS = 100_000_000
# Real data sets draw walls about a pixel thicker than they are, and so put some transmitters inside them.
MAX_DEPTH_IN_WALL = 2
# Where RadioMapSeer's maps give the gain, seen from the centres of the pixels that its building masks are drawn with.
RADIOMAPSEER_RASTER_OFFSET = (-0.45, 0.45)
RASTERS = {"radiomapseer": RADIOMAPSEER_RASTER_OFFSET, "exact": (0.0, 0.0)}


@dataclass(frozen=True)
class GainScale:
    """How 8-bit gray values stand for dB: gray 0 is `db_at_0`, gray 255 is `db_at_255`, linear between.

    `floor_db` is what "no signal" reads as (buildings, too), `noise_floor_db` the level below which a receiver hears
    nothing.
    """

    db_at_0: float
    db_at_255: float
    floor_db: float
    noise_floor_db: float

    RADIOMAPSEER = (
        None  # gain: -147 dB .. -47.84 dB; set below, a class cannot hold an instance of itself while it is made
    )
    INDOOR = None  # ICASSP 2025: the gray value is the path loss in dB

    def to_gray(self, gain_db: np.ndarray) -> np.ndarray:
        """dB to gray levels 0..255, as floats, clipped but not rounded."""
        gray = (np.asarray(gain_db, np.float32) - self.db_at_0) * (255.0 / (self.db_at_255 - self.db_at_0))
        return np.clip(gray, 0.0, 255.0)

    def to_db(self, gray: np.ndarray) -> np.ndarray:
        """Gray levels 0..255 to dB."""
        gain_db = np.asarray(gray, np.float32) * np.float32((self.db_at_255 - self.db_at_0) / 255.0)
        gain_db += np.float32(self.db_at_0)
        return gain_db

    def to_unit(self, gain_db: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """dB to the [-1, 1] that networks see; written into `out`, float32, where it is given."""
        unit = np.subtract(np.asarray(gain_db, np.float32), np.float32(self.db_at_0), out=out)
        unit *= np.float32(2.0 / (self.db_at_255 - self.db_at_0))
        unit -= np.float32(1)
        return np.clip(unit, -1.0, 1.0, out=out)

    def from_unit(self, unit: np.ndarray) -> np.ndarray:
        """The networks' [-1, 1] to dB."""
        return self.to_db((np.clip(np.asarray(unit, np.float32), -1.0, 1.0) + 1.0) * 127.5)


GainScale.RADIOMAPSEER = GainScale(db_at_0=-147.0, db_at_255=-47.84, floor_db=-147.0, noise_floor_db=-127.0)
GainScale.INDOOR = GainScale(db_at_0=0.0, db_at_255=-255.0, floor_db=-160.0, noise_floor_db=-160.0)


@dataclass(eq=False)
class Scene:
    """What is known of a place. Only `buildings` is always needed; most uses need the `transmitter` as well.

    Args:
        buildings (array, PIL image or path): where buildings are: a boolean array, or a picture with bright buildings
            on dark ground. Of numbers up to 1, those above 0.5 are buildings; of gray levels up to 255, those above
            127. Any other two values will do, such as 0 and 65535 or -1 and 1: the higher one, which must be above 0,
            is building. What is none of these (heights, labels) is refused: hand in `heights > 0`.
        transmitter (`(x, y)`, *optional*): its place in pixels. At most 2 pixels inside a wall is taken as drawing
            error.
        cars (array, PIL image or path, *optional*): like `buildings`.
        metres_per_pixel (`float`, defaults to 1.0): the scale.
        frequency_hz (`float`, defaults to 5.9e9): the carrier.
        transmitter_height, receiver_height, building_height, car_height (`float`): metres.
        reflectance, transmittance (array, *optional*): indoor walls, dB per pixel, 0 in air.
        antenna_pattern (array of 360, *optional*): gain in dB at each degree off boresight; `None` is isotropic.
        azimuth (`float`, defaults to 0): where the antenna looks.
        measurements (array, *optional*): gain in dB where it was measured, NaN elsewhere.
        k2 (array, *optional*): the Helmholtz feature of RadioDiff-k², 0..1.
        raster (`str`, *optional*): `"radiomapseer"` for masks as in RadioMapSeer's PNGs, which are drawn half a pixel
            off its maps; `"exact"` (as where left out) for masks that lie on the map. Rays start and end accordingly.
            Short for a `raster_offset`; `scene.raster` says which of the two it is, or `None` where it is another.
        raster_offset (`(dx, dy)`, defaults to `(0, 0)`): pixels from a mask pixel's centre to the point the map gives
            the gain for.
        polygons (*optional*): the buildings' exact outlines, each a tuple of closed rings of `(x, y)` pixels: outside,
            then holes.
            Physics engines prefer them to the raster.
        name (`str`, *optional*): what the scene is called in reports and file names.
    """

    buildings: np.ndarray
    transmitter: tuple[float, float] | None = None
    cars: np.ndarray | None = None
    metres_per_pixel: float = 1.0
    frequency_hz: float = 5.9e9
    transmitter_height: float = 1.5
    receiver_height: float = 1.5
    building_height: float = 25.0
    car_height: float = 1.5
    reflectance: np.ndarray | None = None
    transmittance: np.ndarray | None = None
    antenna_pattern: np.ndarray | None = None
    azimuth: float = 0.0
    measurements: np.ndarray | None = None
    k2: np.ndarray | None = None
    raster_offset: tuple[float, float] = (0.0, 0.0)
    polygons: tuple[tuple[np.ndarray, ...], ...] | None = None
    name: str | None = None
    raster: InitVar[str | None] = None
    # A crop remembers the whole it was cut from: its ray channels must see the buildings between it and the
    # transmitter.
    _cut_from: tuple[Scene, int, int] | None = field(default=None, repr=False)
    # Channels computed or read already, and what several of them share. Those that a cache has read are whole steps of
    # `STEP` until somebody asks.
    _planes: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self, raster: str | None) -> None:
        self.buildings = _as_mask(self.buildings, "buildings")
        height, width = self.buildings.shape
        if min(height, width) < MIN_SIDE:
            raise ValueError(
                f"a scene of {width} x {height} pixels is too small: give at least {MIN_SIDE} x {MIN_SIDE}"
            )
        if self.cars is not None:
            self.cars = _as_mask(self.cars, "cars")
            self._check_shape("cars", self.cars)
        for name in ("reflectance", "transmittance", "measurements", "k2"):
            if getattr(self, name) is not None:
                plane = _as_plane(getattr(self, name), name, allow_nan=name == "measurements")
                self._check_shape(name, plane)
                setattr(self, name, plane)
        for name in POSITIVE_NUMBERS:
            setattr(self, name, _as_positive(getattr(self, name), name))
        self.azimuth = _as_number(self.azimuth, "azimuth")
        if raster is not None:
            self.raster_offset = _named_offset(raster, self.raster_offset)
        if np.shape(self.raster_offset) != (2,):
            raise ValueError(f"raster_offset must be two numbers (dx, dy) in pixels; got {self.raster_offset!r}")
        dx, dy = (_as_number(value, "raster_offset") for value in self.raster_offset)
        if max(abs(dx), abs(dy)) >= 0.5:
            raise ValueError(f"raster_offset must lie inside the pixel, between -0.5 and 0.5; got ({dx:g}, {dy:g})")
        self.raster_offset = dx, dy
        if self.antenna_pattern is not None:
            pattern = np.asarray(self.antenna_pattern, np.float32)
            if pattern.shape != (360,) or not np.isfinite(pattern).all():
                raise ValueError(
                    f"antenna_pattern must be 360 finite gains in dB, one a degree; got shape {pattern.shape}"
                )
            self.antenna_pattern = pattern
        if self.polygons is not None:
            self.polygons = tuple(tuple(np.asarray(ring, np.float64) for ring in polygon) for polygon in self.polygons)
        if self.transmitter is not None:
            self.transmitter = self._checked_transmitter(self.transmitter)

    # Making scenes -----------------------------------------------------------------------------------------------

    @classmethod
    def from_radiomapseer(
        cls, root: str | Path, map_id: int, tx_id: int, layout: str = "png", **options: Any
    ) -> Scene:
        """One scene of a RadioMapSeer folder; `data.radiomapseer.read_scene` tells the options."""
        from .data.radiomapseer import read_scene

        return read_scene(root, map_id, tx_id, layout=layout, **options)

    def crop(self, x: int, y: int, width: int, height: int) -> Scene:
        """The part of the scene whose top left pixel is `(x, y)`. The transmitter stays, also outside of it."""
        full_height, full_width = self.shape
        if not (
            0 <= x and 0 <= y and x + width <= full_width and y + height <= full_height and width > 0 and height > 0
        ):
            raise ValueError(
                f"crop {width} x {height} at ({x}, {y}) does not lie inside the scene of {full_width} x {full_height}"
            )
        window = np.s_[y : y + height, x : x + width]
        planes = {
            name: None if getattr(self, name) is None else getattr(self, name)[window]
            for name in ("buildings", "cars", "reflectance", "transmittance", "measurements", "k2")
        }
        whole, left, top = self._cut_from or (self, 0, 0)
        moved = None if self.transmitter is None else (self.transmitter[0] - x, self.transmitter[1] - y)
        polygons = self.polygons and tuple(tuple(ring - (x, y) for ring in polygon) for polygon in self.polygons)
        return replace(
            self, **planes, transmitter=moved, polygons=polygons, _cut_from=(whole, left + x, top + y), _planes={}
        )

    def replace(self, **changes: Any) -> Scene:
        """A copy with some fields changed, checked anew.

        Of a crop, numbers and the antenna change for the whole it was cut from as well, so that its ray channels still
        see what stands outside. A crop with another plane, outline or transmitter is a scene of its own.
        """
        unknown = sorted(set(changes) - {f.name for f in fields(self) if not f.name.startswith("_")} - {"raster"})
        if unknown:
            raise ValueError(f"a Scene has no field {unknown[0]!r}")
        # A name and an offset stand for the same: what is not given must not hold on to what was before.
        if changes.get("raster") is None:
            changes["raster"] = None
        else:
            changes.setdefault("raster_offset", (0.0, 0.0))
        if self._cut_from is None:
            return replace(self, **{"_planes": {}, **changes})
        drawn = sorted(DRAWN_FIELDS & set(changes))
        if not drawn:
            whole, x, y = self._cut_from
            return replace(self, **changes, _cut_from=(whole.replace(**changes), x, y), _planes={})
        if self.transmitter is not None and self.transmitter_pixel is None and "transmitter" not in changes:
            x, y = self.transmitter
            raise ValueError(
                f"a crop with other {drawn[0]} is a scene of its own, but its transmitter ({x:g}, {y:g}) lies outside "
                "of it: change the whole scene and crop that, or give transmitter=(x, y) or None as well"
            )
        return replace(self, **{"_cut_from": None, "_planes": {}, **changes})

    # What it knows -------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """`(height, width)` in pixels."""
        return self.buildings.shape

    @property
    def footprint(self) -> np.ndarray:
        """`(H, W)` where the map has buildings. A mask of RadioMapSeer's is half a pixel off its map: there the
        outlines that it suggests are drawn anew."""
        if self.polygons is not None or self.raster != "radiomapseer":
            return self.buildings
        from .engines.outlines import footprint

        return footprint(self)

    @property
    def obstacles(self) -> np.ndarray:
        """Buildings and cars; the transmitter's own pixel is always free."""
        blocked = self.buildings if self.cars is None else self.buildings | self.cars
        pixel = self.transmitter_pixel
        if pixel is not None and blocked[pixel]:
            blocked = blocked.copy()
            blocked[pixel] = False
        return blocked

    @property
    def transmitter_pixel(self) -> tuple[int, int] | None:
        """`(row, column)` of the transmitter, or `None` where it is unknown or outside a crop."""
        if self.transmitter is None:
            return None
        column, row = (int(np.floor(v + 0.5)) for v in self.transmitter)
        height, width = self.shape
        return (row, column) if 0 <= row < height and 0 <= column < width else None

    def cut_from_whole(self, plane: np.ndarray) -> np.ndarray:
        """Of a plane of the scene that this crop was cut from, the crop's part."""
        _, x, y = self._cut_from
        height, width = self.shape
        return plane[y : y + height, x : x + width]

    def require_transmitter(self, what: str) -> tuple[float, float]:
        """The transmitter, or one line that says `what` needs it."""
        if self.transmitter is None:
            raise ValueError(f"{what} needs to know the transmitter: make the scene with transmitter=(x, y)")
        return self.transmitter

    def plane(self, channel: str) -> np.ndarray:
        """One condition channel of this scene by name, (H, W) float32 in [-1, 1]; computed once."""
        from .channels import compute_channel

        plane = self._planes.get(channel)
        if plane is None:
            plane = self._planes[channel] = compute_channel(channel, self)
        elif plane.dtype == np.int16:
            plane = self._planes[channel] = np.multiply(plane, STEP, dtype=np.float32)
        return plane

    # Checks ---------------------------------------------------------------------------------------------------------

    def _check_shape(self, name: str, plane: np.ndarray) -> None:
        if plane.shape != self.shape:
            (height, width), (h, w) = self.shape, plane.shape
            raise ValueError(f"{name} is {w} x {h} pixels but buildings is {width} x {height}: they must be equal")

    def _checked_transmitter(self, transmitter: Any) -> tuple[float, float]:
        try:
            x, y = (float(v) for v in transmitter)
        except (TypeError, ValueError):
            raise ValueError(f"transmitter must be two numbers (x, y) in pixels; got {transmitter!r}") from None
        if not (np.isfinite(x) and np.isfinite(y)):
            raise ValueError(f"transmitter must be finite; got ({x}, {y})")
        if self._cut_from is not None:
            return x, y
        height, width = self.shape
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise ValueError(
                f"transmitter ({x:g}, {y:g}) lies outside the map of {width} x {height} pixels (x right, y down)"
            )
        depth = _depth_in_wall(self.buildings, int(np.floor(y + 0.5)), int(np.floor(x + 0.5)))
        if depth > MAX_DEPTH_IN_WALL:
            raise ValueError(
                f"transmitter ({x:g}, {y:g}) stands inside a building, over {MAX_DEPTH_IN_WALL} pixels deep: move it"
            )
        return x, y


def _raster(scene: Scene) -> str | None:
    """The name of the scene's `raster_offset`: `"radiomapseer"`, `"exact"`, or `None` where it is another."""
    return next((name for name, offset in RASTERS.items() if offset == scene.raster_offset), None)


Scene.raster = property(_raster)  # not in the class, where it would be taken for the default of the argument


@dataclass(eq=False)
class RadioMap:
    """The gain in dB at every pixel, with its scale. `std_db` says how far several samples of it differed."""

    gain_db: np.ndarray
    scale: GainScale = GainScale.RADIOMAPSEER
    metres_per_pixel: float = 1.0
    std_db: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.gain_db = np.ascontiguousarray(self.gain_db, np.float32)
        if self.gain_db.ndim != 2:
            raise ValueError(f"gain_db must be one (height, width) plane; got shape {self.gain_db.shape}")
        if self.std_db is not None:
            self.std_db = np.ascontiguousarray(self.std_db, np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return self.gain_db.shape

    @classmethod
    def from_gray(cls, gray: np.ndarray, scale: GainScale = GainScale.RADIOMAPSEER, **fields_: Any) -> RadioMap:
        """From gray levels 0..255."""
        return cls(scale.to_db(gray), scale=scale, **fields_)

    @property
    def gray(self) -> np.ndarray:
        """(H, W) float32 gray levels 0..255."""
        return self.scale.to_gray(self.gain_db)

    def to_image(self) -> Image.Image:
        """An 8-bit gray PIL image on the map's scale."""
        from PIL import Image

        return Image.fromarray(np.rint(self.gray).astype(np.uint8))

    def save(self, path: str | Path) -> Path:
        """Write .png (8-bit gray on the scale), .npz (exact, with spread and scale) or .tif (float32 dB)."""
        path = Path(path)
        suffix = path.suffix.lower()
        check_map_ending(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == ".png":
            self.to_image().save(path)
        elif suffix == ".npz":
            about = {
                "scale": [getattr(self.scale, f.name) for f in fields(GainScale)],
                "metres_per_pixel": self.metres_per_pixel,
            }
            spread = {} if self.std_db is None else {"std_db": self.std_db}
            with path.open("wb") as file:  # a file object: numpy would add a second suffix to an upper-case one
                np.savez_compressed(file, gain_db=self.gain_db, about=json.dumps(about), **spread)
        else:
            from PIL import Image

            Image.fromarray(self.gain_db).save(path)
        return path

    @classmethod
    def load(cls, path: str | Path, scale: GainScale = GainScale.RADIOMAPSEER) -> RadioMap:
        """Read what `save` wrote. A PNG does not say its scale: `scale` does."""
        path = Path(path)
        if path.suffix.lower() == ".npz":
            return cls._load_npz(path)
        values = read_image(path)
        return cls(values, scale=scale) if values.dtype == np.float32 else cls.from_gray(values, scale)

    @classmethod
    def _load_npz(cls, path: Path) -> RadioMap:
        try:
            with np.load(path, allow_pickle=False) as saved:
                about = json.loads(str(saved["about"]))
                return cls(
                    saved["gain_db"],
                    scale=GainScale(*about["scale"]),
                    metres_per_pixel=about["metres_per_pixel"],
                    std_db=saved["std_db"] if "std_db" in saved else None,
                )
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file") from None
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile):
            raise ValueError(f"{path} is no radio map: expected a file that RadioMap.save wrote, whole") from None


def check_map_ending(path: Path) -> None:
    """Fail in one line where a radio map cannot be written under this name."""
    if path.suffix.lower() not in MAP_ENDINGS:
        raise ValueError(f"cannot write a radio map as {path.name!r}: use .png, .npz or .tif")


# Reading what users hand in ----------------------------------------------------------------------------------------


def read_image(source: str | Path | Image.Image) -> np.ndarray:
    """A picture as one gray plane, uint8 (float32 where the file holds floats); one too large is not even decoded."""
    from PIL import Image, UnidentifiedImageError

    where = f"{source}" if isinstance(source, (str, Path)) else "the image"
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit comes with a reason
    try:
        image = Image.open(source) if isinstance(source, (str, Path)) else source
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"{where} is {image.width} x {image.height} pixels, over the {MAX_PIXELS:,} of a map: cut it up"
            )
        if image.mode in {"F", "I", "I;16"}:
            return np.asarray(image, np.float32)
        return np.asarray(image.convert("L"))
    except FileNotFoundError:
        raise ValueError(f"{where}: no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{where} is a folder, not an image") from None
    except UnidentifiedImageError:
        raise ValueError(f"{where} is not an image that can be read") from None
    except (OSError, SyntaxError) as error:  # PIL reports broken files as either
        raise ValueError(f"{where} is damaged: {error}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _as_mask(value: Any, name: str) -> np.ndarray:
    """Boolean plane from an array, an image or a path; `Scene` says which values are what."""
    plane = _as_array(value, name)
    if plane.dtype == bool:
        return plane
    if plane.size == 0:
        raise ValueError(f"{name} is empty")
    low, top = float(plane.min()), float(plane.max())
    if 0 <= low and top <= 1:
        return plane > 0.5
    if 0 <= low and 127 < top <= 255:
        return plane > 127
    mask = plane == top
    if low <= 0 < top and (mask | (plane == low)).all():
        return mask
    raise ValueError(
        f"{name} holds values from {low:g} to {top:g}: it takes booleans, 0..1, gray levels 0..255 (above 127 is "
        f"covered) or any two values; of heights or labels hand in {name} > 0"
    )


def _named_offset(raster: Any, offset: Any) -> tuple[float, float]:
    if raster not in RASTERS:
        raise ValueError(f"raster must be one of {', '.join(RASTERS)}; got {raster!r}")
    if np.any(np.asarray(offset) != 0) and not np.array_equal(offset, RASTERS[raster]):
        raise ValueError(f"raster {raster!r} and raster_offset {offset!r} contradict each other: give one of the two")
    return RASTERS[raster]


def _as_plane(value: Any, name: str, allow_nan: bool = False) -> np.ndarray:
    return np.ascontiguousarray(_as_array(value, name, allow_nan), np.float32)


def _as_array(value: Any, name: str, allow_nan: bool = False) -> np.ndarray:
    if isinstance(value, (str, Path)) or hasattr(value, "convert"):
        return read_image(value)
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu().numpy()
    plane = np.asarray(value)
    if plane.dtype.kind not in "buif":
        raise ValueError(f"{name} must hold numbers or booleans; got {plane.dtype}")
    if plane.ndim != 2:
        raise ValueError(f"{name} must be one (height, width) plane; got shape {plane.shape}")
    if plane.size > MAX_PIXELS:
        height, width = plane.shape
        raise ValueError(f"{name} is {width} x {height} pixels, over the {MAX_PIXELS:,} of a map: cut it up")
    if plane.dtype.kind == "f":
        bad = np.isinf(plane) if allow_nan else ~np.isfinite(plane)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ValueError(
                f"{name} has {int(bad.sum())} values that are not finite, the first at column {column}, row {row}"
            )
    return plane


def _as_number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number; got {value!r}") from None
    if not np.isfinite(number):
        raise ValueError(f"{name} must be finite; got {number}")
    return number


def _as_positive(value: Any, name: str) -> float:
    number = _as_number(value, name)
    if number <= 0:
        raise ValueError(f"{name} must be above 0; got {number}")
    return number


def _depth_in_wall(buildings: np.ndarray, row: int, column: int) -> float:
    """Pixels from here to the nearest free one, 0 on free ground; looks no further than it must."""
    if not buildings[row, column]:
        return 0.0
    reach = MAX_DEPTH_IN_WALL + 1
    top, left = max(row - reach, 0), max(column - reach, 0)
    free = np.argwhere(~buildings[top : row + reach + 1, left : column + reach + 1])
    if not len(free):
        return float("inf")
    return float(np.hypot(free[:, 0] + top - row, free[:, 1] + left - column).min())

"""The dominant path model: the strongest single way to every pixel, round corners or over roofs."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass, fields

import numpy as np
import shapely

from ..scene import RadioMap, Scene
from .between import choose_pixels, fill_between, mark_sight
from .free_space_gain import loss_at_one_metre
from .ground import Ground, build_ground, covered_area
from .outlines import known_outlines, outlines
from .wavefront import locate, run_front

HALF_CAR = 2.0  # metres


@dataclass(frozen=True)
class PathLaws:
    """The constants of the model; the defaults are RadioMapSeer's, read off its maps (docs/dominant_path.md).

    Args:
        sight_exponent: in line of sight the loss grows with 10 times this a decade of distance.
        shadow_exponent: the same for the whole length of a way that turns.
        corner_loss: dB that every turn costs, however small.
        corner_loss_per_degree: dB for every degree of the turn.
        largest_turn: degrees; a sharper turn costs no more than this one.
        roof_drop: metres below the buildings' height at which ways cross roofs.
    """

    sight_exponent: float = 2.5
    shadow_exponent: float = 2.8
    corner_loss: float = 2.26
    corner_loss_per_degree: float = 0.154
    largest_turn: float = 70.0
    roof_drop: float = 3.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not np.isfinite(value) or (value < 0 and name != "roof_drop"):
                raise ValueError(f"{name} must be a finite number, not below 0; got {value}")

    @classmethod
    def of(cls, laws: dict[str, float]) -> PathLaws:
        """From constants by name; a wrong name is refused in one line."""
        known = [f.name for f in fields(cls)]
        for name in laws:
            if name not in known:
                raise ValueError(f"dominant_path has no constant {name!r}; it has {', '.join(known)}")
        return cls(**laws)


@dataclass(eq=False)
class City:
    """What `prepare` found out about a city, for all its transmitters."""

    shape: tuple[int, int]
    open: _Streets  # as if there were no cars
    parked: _Streets | None  # with cars as walls


@dataclass(eq=False)
class _Streets:
    ground: Ground
    blocked: np.ndarray  # pixels that no way along the ground may use


def prepare(scene: Scene) -> City:
    """The part of `dominant_path`'s work that all transmitters of a city share: pass it on as `city=`."""
    buildings, covered = covered_area(known_outlines(scene)), scene.footprint
    parked = None
    if scene.cars is not None and scene.cars.any():
        obstacles = shapely.union(buildings, covered_area(outlines(scene.cars, scene.raster_offset)))
        parked = _streets(covered | scene.cars, obstacles)
    return City(scene.shape, _streets(covered, buildings), parked)


def city_key(scene: Scene) -> tuple:
    """All that `prepare` depends on: equal keys, equal cities."""
    rings = None
    if scene.polygons is not None:
        rings = tuple(tuple(ring.tobytes() for ring in polygon) for polygon in scene.polygons)
    cars = None if scene.cars is None else scene.cars.tobytes()
    return scene.shape, scene.raster_offset, scene.buildings.tobytes(), cars, rings


def prepared(scene: Scene) -> City:
    """The same with a memory, for channels of one scene that share it; a scene whose walls were changed since is
    prepared anew."""
    memory, walls = scene._planes, hash(city_key(scene))
    if memory.get("_walls", walls) != walls:
        for name in ("_outlines", "_footprint", "_city"):
            memory.pop(name, None)
    if "_city" not in memory:
        memory["_city"], memory["_walls"] = prepare(scene), walls
    return memory["_city"]


def _streets(blocked: np.ndarray, walls: shapely.Geometry) -> _Streets:
    ground = build_ground(blocked.shape, walls)
    return _Streets(ground, blocked | (ground.triangle_of_pixel < 0))


def dominant_path(scene: Scene, *, city: City | None = None, step: int = 1, **laws: float) -> RadioMap:
    """The gain of the strongest single path to every pixel; the constants of `PathLaws` can be given by name.

    `city` is what `prepare(scene)` made, for many transmitters in one city. With a `step` of 2 or more the search
    takes all pixels beside walls, but in the open every so many only: line of sight stays exact, shadows are read off
    between. Buildings come out at the scale's floor.
    """
    scene.require_transmitter("dominant_path")
    if step != int(step) or step < 1:
        raise ValueError(f"step must be a whole number of pixels from 1 up; got {step!r}")
    constants = PathLaws.of(laws)
    if scene._cut_from is not None and city is None:  # the buildings beyond the crop matter
        gain = scene.cut_from_whole(dominant_path(scene._cut_from[0], step=step, **laws).gain_db)
        return RadioMap(gain, metres_per_pixel=scene.metres_per_pixel)
    city = city or prepare(scene)
    if city.shape != scene.shape:
        (h, w), (height, width) = city.shape, scene.shape
        raise ValueError(
            f"the city was prepared for {w} x {h} pixels, but the scene has {width} x {height}: prepare it anew"
        )
    loss, _ = path_losses(scene, city, constants, int(step))
    floor = RadioMap.scale.floor_db
    gain = np.where(scene.footprint, floor, np.maximum(-loss_at_one_metre(scene) - loss, floor))
    return RadioMap(gain.astype(np.float32), metres_per_pixel=scene.metres_per_pixel)


def path_losses(scene: Scene, city: City, laws: PathLaws, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """dB beyond the free-space loss at 1 m on every pixel (infinite in buildings, and where no path leads), and the
    part of them that is lost in turns.

    With a `step` above 1 the search takes only every so many pixels in the open, and the others in shadow are read off
    between them.
    """
    loss, turned = _losses_in(city.open, scene, laws, step)
    above = scene.car_height - min(scene.transmitter_height, scene.receiver_height)
    if city.parked is not None and above >= 0:
        # Cars are walls that may be passed over once: a turn up and a turn down, as steep as half a car's length makes
        # them.
        steep = np.degrees(np.arctan2(above, HALF_CAR))
        over = 2.0 * (laws.corner_loss + laws.corner_loss_per_degree * min(steep, laws.largest_turn))
        round_cars, turned_round = _losses_in(city.parked, scene, laws, step)
        turned = np.where(round_cars <= loss + over, turned_round, turned + over)
        loss = np.minimum(round_cars, loss + over)
        loss[scene.cars & ~scene.footprint] = np.inf
    return loss, np.where(np.isfinite(loss), turned, 0.0)


def _losses_in(streets: _Streets, scene: Scene, laws: PathLaws, step: int) -> tuple[np.ndarray, np.ndarray]:
    x, y, home = free_start(streets, *scene.transmitter)
    rise = scene.building_height - laws.roof_drop - scene.receiver_height
    climb = scene.transmitter_height - scene.receiver_height
    buildings = scene.footprint
    passable = buildings & (rise > max(climb, 0.0))  # over roofs, where they are above both antennas
    obstacle = np.where(streets.blocked, np.where(passable, 1, 2), 0).astype(np.int8)
    ground = streets.ground
    metres = scene.metres_per_pixel
    in_sight = searched = np.empty((0, 0), bool)
    if step > 1:
        in_sight, searched = np.zeros(scene.shape, bool), choose_pixels(obstacle, x, y, step)
        mark_sight(x, y, home, *ground.mesh, in_sight)
    loss, turned = run_front(
        x, y, home, obstacle, ground.triangle_of_pixel, *ground.mesh, metres, climb, rise, np.array(astuple(laws)),
        step, searched, in_sight,
    )  # fmt: skip
    if step > 1:
        fill_between(loss, turned, in_sight, obstacle, step)
    rows, columns = np.nonzero(ground.on_wall)
    distance = np.hypot(columns - x, rows - y) * metres
    by_sight = 10.0 * laws.sight_exponent * np.log10(np.maximum(distance, 1.0))
    loss[rows, columns] = np.minimum(loss[rows, columns], np.maximum(_beside(loss, rows, columns), by_sight))
    return _close_gaps(loss, buildings), turned


def _beside(loss: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """For receivers exactly on a wall, whose rays run along it: what the best place beside them, off the wall, has."""
    off = np.full(np.add(loss.shape, 2), np.inf)
    off[1:-1, 1:-1] = loss
    off[rows + 1, columns + 1] = np.inf
    around = ((1, 2), (1, 0), (2, 1), (0, 1))
    return np.minimum.reduce([off[rows + down, columns + across] for down, across in around])


def free_start(streets: _Streets, x: float, y: float) -> tuple[float, float, int]:
    """The transmitter and the triangle it stands in; the nearest free pixel where it was drawn inside a wall."""
    column, row = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
    height, width = streets.blocked.shape
    inside = 0 <= row < height and 0 <= column < width
    if not inside or streets.blocked[row, column] or locate(x, y, *streets.ground.mesh[:2]) < 0:
        free = np.argwhere(~streets.blocked)
        if not len(free):
            raise ValueError("the scene has no free pixel: every one is building")
        row, column = free[np.argmin((free[:, 0] - y) ** 2 + (free[:, 1] - x) ** 2)]
        x, y = float(column), float(row)
    return x, y, locate(x, y, *streets.ground.mesh[:2])


def _close_gaps(loss: np.ndarray, buildings: np.ndarray) -> np.ndarray:
    """Free pixels whose centre lies inside an outline, or that no way reached, take their best neighbour's loss."""
    for _ in range(3):
        gaps = np.isinf(loss) & ~buildings
        if not gaps.any():
            break
        height, width = loss.shape
        around = np.pad(loss, 1, constant_values=np.inf)
        shifted = [around[dy : dy + height, dx : dx + width] for dy in range(3) for dx in range(3)]
        loss = np.where(gaps, np.minimum.reduce(shifted), loss)
    return loss

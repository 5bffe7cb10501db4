"""Augmentation of a scene and its map together: the eight symmetries of the square, and crops.

Everything a scene knows goes along: planes, transmitter, polygons, and which way the antenna looks. Its channels are
made from the changed scene, so that ray channels are right by construction; those that a cache has read are turned as
they are, which takes a hundredth of the time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..scene import RadioMap, Scene

SYMMETRIES = tuple((turns, flip) for flip in (False, True) for turns in range(4))
# Channels that a cache may have read and that turn like a picture.
TURNED_AS_READ = frozenset(
    (
        "visibility",
        "obstruction",
        "log_distance",
        "free_space",
        "detour_loss",
        "detour_turn",
        "reflected_loss",
        "distance",
        "wall_loss",
    )
)
_PLANES = ("buildings", "cars", "reflectance", "transmittance", "measurements", "k2")


def apply_symmetry(scene: Scene, radio_map: RadioMap, turns: int, flip: bool) -> tuple[Scene, RadioMap]:
    """Mirror left-right where `flip`, then turn counter-clockwise by `turns` quarters."""
    turned = turn_scene(scene, turns, flip)
    std = None if radio_map.std_db is None else turn_plane(radio_map.std_db, turns, flip)
    return turned, replace(radio_map, gain_db=turn_plane(radio_map.gain_db, turns, flip), std_db=std)


def turn_plane(plane: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    """The symmetry on the last two axes of an array."""
    if flip:
        plane = plane[..., ::-1]
    return np.ascontiguousarray(np.rot90(plane, turns, axes=(-2, -1)))


def turn_scene(scene: Scene, turns: int, flip: bool) -> Scene:
    """The symmetry on all that a scene knows."""
    if scene._cut_from is not None:  # a crop: turn the whole it was cut from, and cut the same part again
        whole, x, y = scene._cut_from
        height, width = scene.shape
        corners = _turn_points(np.array([[x, y], [x + width - 1, y + height - 1]], float), whole.shape, turns, flip)
        left, top = (int(v) for v in corners.min(axis=0))
        new_width, new_height = (height, width) if turns % 2 else (width, height)
        return turn_scene(whole, turns, flip).crop(left, top, new_width, new_height)
    planes = {
        name: None if getattr(scene, name) is None else turn_plane(getattr(scene, name), turns, flip)
        for name in _PLANES
    }
    transmitter = scene.transmitter
    if transmitter is not None:
        transmitter = tuple(_turn_points(np.array([transmitter]), scene.shape, turns, flip)[0].tolist())
    polygons = scene.polygons and tuple(
        tuple(_turn_points(ring, scene.shape, turns, flip) for ring in polygon) for polygon in scene.polygons
    )
    read = {
        name: turn_plane(plane, turns, flip)
        for name, plane in scene._planes.items()
        if name in TURNED_AS_READ and plane.dtype == np.int16
    }
    azimuth, pattern = turn_antenna(scene.azimuth, scene.antenna_pattern, turns, flip)
    return replace(
        scene,
        **planes,
        transmitter=transmitter,
        polygons=polygons,
        azimuth=azimuth,
        antenna_pattern=pattern,
        raster=None,  # a turned offset has no name
        raster_offset=_turn_vector(scene.raster_offset, turns, flip),
        _cut_from=None,
        _planes=read,
    )


def turn_antenna(
    azimuth: float, pattern: np.ndarray | None, turns: int, flip: bool
) -> tuple[float, np.ndarray | None]:
    """Where the antenna looks after the symmetry.

    In the data sets' convention (ICASSP 2025) the gain towards a pixel is entry azimuth - atan2(dy, dx) of the
    pattern, y down; a quarter turn counter-clockwise takes 90 degrees from that angle. A mirror image makes the angle
    180 degrees minus it, and so runs through the pattern backwards. Entry k stands for the degree from k to k + 1, so
    backwards it stands for the one from -k - 1 to -k: entry 359 - k.
    """
    if flip:
        azimuth = 180.0 - azimuth
        pattern = None if pattern is None else np.ascontiguousarray(pattern[::-1])
    return float((azimuth - 90.0 * turns) % 360.0), pattern


def random_symmetry(
    scene: Scene, radio_map: RadioMap, rng: np.random.Generator, flips_only: bool = False
) -> tuple[Scene, RadioMap]:
    """One of the eight symmetries; of the four that keep the shape where the map is oblong, so that batches stack."""
    return apply_symmetry(scene, radio_map, *draw_symmetry(scene.shape, rng, flips_only))


def draw_symmetry(shape: tuple[int, int], rng: np.random.Generator, flips_only: bool = False) -> tuple[int, bool]:
    turns = 0 if flips_only else int(rng.integers(4))
    if shape[0] != shape[1]:
        turns -= turns % 2
    return turns, bool(rng.integers(2))


def crop_pair(scene: Scene, radio_map: RadioMap, x: int, y: int, side: int) -> tuple[Scene, RadioMap]:
    """The same square of both."""
    window = np.s_[y : y + side, x : x + side]
    std = None if radio_map.std_db is None else radio_map.std_db[window]
    return scene.crop(x, y, side, side), replace(radio_map, gain_db=radio_map.gain_db[window], std_db=std)


def random_crop(
    scene: Scene,
    radio_map: RadioMap,
    side: int,
    rng: np.random.Generator,
    keep_transmitter: bool = False,
    margin: int = 0,
) -> tuple[Scene, RadioMap]:
    """A random square; the transmitter stays known, and inside by `margin` pixels where it must."""
    height, width = scene.shape
    check_crop(scene.shape, side, keep_transmitter, margin)
    x_range, y_range = (0, width - side), (0, height - side)
    if keep_transmitter:
        x, y = scene.require_transmitter("a crop that keeps the transmitter")
        x_range, y_range = _window_holding(x, side, width, margin), _window_holding(y, side, height, margin)
    left = int(rng.integers(x_range[0], x_range[1] + 1))
    top = int(rng.integers(y_range[0], y_range[1] + 1))
    return crop_pair(scene, radio_map, left, top, side)


def middle_crop(
    scene: Scene, radio_map: RadioMap, side: int, keep_transmitter: bool = False, margin: int = 0
) -> tuple[Scene, RadioMap]:
    """The middle square, or the one nearest to it that keeps the transmitter: what validation looks at."""
    height, width = scene.shape
    check_crop(scene.shape, side, keep_transmitter, margin)
    left, top = (width - side) // 2, (height - side) // 2
    if keep_transmitter:
        x, y = scene.require_transmitter("a crop that keeps the transmitter")
        left = int(np.clip(left, *_window_holding(x, side, width, margin)))
        top = int(np.clip(top, *_window_holding(y, side, height, margin)))
    return crop_pair(scene, radio_map, left, top, side)


def check_crop(shape: tuple[int, int], side: int, keep_transmitter: bool, margin: int) -> None:
    height, width = shape
    if side > min(height, width):
        raise ValueError(f"crop is {side} pixels but the map only {width} x {height}: choose a smaller crop")
    if keep_transmitter and 2 * margin >= side:
        raise ValueError(
            f"transmitter_margin {margin} leaves no room in a crop of {side} pixels: choose a smaller one"
        )


def _window_holding(position: float, side: int, length: int, margin: int) -> tuple[int, int]:
    """First and last start of a window of `side` that holds `position`, `margin` from its ends where the map
    allows."""
    pixel = int(np.floor(position + 0.5))
    low, high = pixel - side + 1 + margin, pixel - margin
    return int(np.clip(low, 0, length - side)), int(np.clip(high, 0, length - side))


def _turn_points(points: np.ndarray, shape: tuple[int, int], turns: int, flip: bool) -> np.ndarray:
    """Points (x, y) of a plane of this shape after the symmetry; pixel centres are whole numbers."""
    height, width = shape
    x, y = points[:, 0].astype(float), points[:, 1].astype(float)
    if flip:
        x = width - 1 - x
    for _ in range(turns % 4):
        x, y = y, width - 1 - x  # a quarter turn counter-clockwise: column c becomes row width - 1 - c
        width, height = height, width
    return np.stack([x, y], axis=1)


def _turn_vector(vector: tuple[float, float], turns: int, flip: bool) -> tuple[float, float]:
    x, y = vector
    if flip:
        x = -x
    for _ in range(turns % 4):
        x, y = y, -x
    return x, y

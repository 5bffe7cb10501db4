"""Cutting and padding (`Scene`, `RadioMap`) pairs to one size without losing the transmitter."""

from __future__ import annotations

import numpy as np

from ..scene import RadioMap, Scene


def crop_corner(
    shape: tuple[int, int],
    transmitter: tuple[float, float],
    size: tuple[int, int],
    margin: int = 10,
    rng: np.random.Generator | None = None,
) -> tuple[int, int]:
    """Top left pixel `(x, y)` of a crop that holds the transmitter, at least `margin` pixels from the crop's border.

    With `rng` the crop is drawn from all such crops, without it the transmitter is in the middle. The crop never
    leaves the
    map: of a transmitter nearer than `margin` to the map's own border, the crop that ends at that border is taken, and
        the
    margin is what the map gives.

    Args:
        shape: `(height, width)` of the map.
        size: `(height, width)` of the crop, at most the map's.
    """
    corner = []
    for place, side, wanted in zip(transmitter, shape[::-1], size[::-1], strict=True):
        if wanted > side:
            (height, width), (h, w) = shape, size
            raise ValueError(f"a crop of {w} x {h} does not fit into {width} x {height} pixels: pad the pair first")
        place = int(np.floor(place + 0.5))
        if not 0 <= place < side:
            raise ValueError(f"the transmitter ({transmitter[0]:g}, {transmitter[1]:g}) lies outside the map")
        reach = min(margin, (wanted - 1) // 2)
        low, high = place - wanted + 1 + reach, place - reach
        if rng is None:
            start = place - wanted // 2
        else:
            start = int(rng.integers(max(low, 0), max(min(high, side - wanted), max(low, 0)) + 1))
        corner.append(int(np.clip(start, 0, side - wanted)))
    return corner[0], corner[1]


def pad_pair(scene: Scene, radio_map: RadioMap | None, size: tuple[int, int]) -> tuple[Scene, RadioMap | None]:
    """At least `size` (height, width): free ground is added on the right and below, and there the map reads "no
    signal".
    """
    height, width = scene.shape
    right, below = max(size[1] - width, 0), max(size[0] - height, 0)
    if not right and not below:
        return scene, radio_map

    def pad(plane: np.ndarray, value: float) -> np.ndarray:
        return np.pad(plane, ((0, below), (0, right)), constant_values=value)

    planes = {
        name: pad(getattr(scene, name), np.nan if name == "measurements" else 0)
        for name in ("buildings", "cars", "reflectance", "transmittance", "measurements", "k2")
        if getattr(scene, name) is not None
    }
    padded = scene.replace(**planes)
    if radio_map is None:
        return padded, None
    return padded, _like(radio_map, pad(radio_map.gain_db, radio_map.scale.floor_db))


def crop_pair(
    scene: Scene,
    radio_map: RadioMap,
    size: int | tuple[int, int],
    margin: int = 10,
    rng: np.random.Generator | None = None,
) -> tuple[Scene, RadioMap]:
    """A crop round the transmitter of exactly `size`, padded where the map is smaller; see `crop_corner`.

    The cropped scene remembers the whole: its ray channels see the walls between it and a transmitter outside it.
    """
    height, width = (size, size) if isinstance(size, int) else size
    scene, radio_map = pad_pair(scene, radio_map, (height, width))
    x, y = crop_corner(scene.shape, scene.require_transmitter("a crop"), (height, width), margin, rng)
    return scene.crop(x, y, width, height), _like(radio_map, radio_map.gain_db[y : y + height, x : x + width])


def _like(radio_map: RadioMap, gain_db: np.ndarray) -> RadioMap:
    return RadioMap(gain_db, radio_map.scale, radio_map.metres_per_pixel)

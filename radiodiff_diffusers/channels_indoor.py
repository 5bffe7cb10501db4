"""Condition channels of indoor scenes: walls with known losses, antennas with a pattern.

| name | -1 | +1 | between |
|---|---|---|---|
| `reflectance`, `transmittance` | 0 dB (air) | 32 dB and more | linear |
| `distance` | 0 m | 160 m and more | linear |
| `antenna_gain` | -55 dB and less | 15 dB and more | linear; towards each pixel |
| `wall_loss` | 0 dB | 160 dB and more | linear; walls between the transmitter and each pixel |
| `free_space_loss` | 0 dB | 255 dB | linear, as the indoor target; path loss in free space less the antenna's gain |

The formulas are those that entries to the ICASSP 2025 indoor challenge share; `radiodiff_diffusers.engines.indoor`
adds `free_space_loss` and `wall_loss` up to a map.
"""

from __future__ import annotations

import math

import numpy as np

from .channels import register_channel
from .engines.free_space_gain import antenna_gain_db
from .geometry import distance_metres
from .scene import GainScale, Scene

MOST_DB = 32.0
FARTHEST_METRES = 160.0
GAIN_RANGE_DB = (-55.0, 15.0)
MOST_WALL_LOSS_DB = 160.0

NEAREST_METRES = 0.125  # free space is not followed nearer than half a pixel of 0.25 m
MOST_WALLS = 10


@register_channel("reflectance")
def reflectance(scene: Scene) -> np.ndarray:
    return _linear(_wall_plane(scene, "reflectance"), 0.0, MOST_DB)


@register_channel("transmittance")
def transmittance(scene: Scene) -> np.ndarray:
    return _linear(_wall_plane(scene, "transmittance"), 0.0, MOST_DB)


@register_channel("distance")
def distance(scene: Scene) -> np.ndarray:
    return _linear(distance_metres(scene), 0.0, FARTHEST_METRES)


@register_channel("antenna_gain")
def antenna_gain(scene: Scene) -> np.ndarray:
    return _linear(antenna_gain_db(scene), *GAIN_RANGE_DB)


@register_channel("wall_loss")
def wall_loss(scene: Scene) -> np.ndarray:
    return _linear(wall_loss_db(scene), 0.0, MOST_WALL_LOSS_DB)


@register_channel("free_space_loss")
def free_space_loss(scene: Scene) -> np.ndarray:
    return GainScale.INDOOR.to_unit(-free_space_loss_db(scene))


# What they are made of -----------------------------------------------------------------------------------------------


def free_space_loss_db(scene: Scene) -> np.ndarray:
    """(H, W) path loss in free space, less the antenna's gain: 20 log10 d + 20 log10 f - 27.55 - gain (d in m, f in
    MHz).
    """
    metres = np.maximum(distance_metres(scene), np.float32(NEAREST_METRES))
    carrier = 20.0 * math.log10(scene.frequency_hz / 1e6) - 27.55
    return 20.0 * np.log10(metres) + np.float32(carrier) - antenna_gain_db(scene)


def wall_loss_db(scene: Scene, most_walls: int = MOST_WALLS) -> np.ndarray:
    """(H, W) dB lost in walls on the straight way from the transmitter to each pixel.

    A wall is a run of pixels with transmittance loss; the ray pays the loss of the last of them when it comes out on
    the other side, so pixels within a wall have not paid for it yet. After `most_walls` walls nothing more is added:
    by then the signal takes other ways.
    """
    memory = scene._planes
    key = f"_wall_loss_{most_walls}"
    if key not in memory:
        from .rays import through_walls

        x, y = scene.require_transmitter("wall loss")
        walls = _wall_plane(scene, "transmittance")
        memory[key] = through_walls(walls, float(x), float(y), most_walls)
    return memory[key]


def _wall_plane(scene: Scene, name: str) -> np.ndarray:
    plane = getattr(scene, name)
    if plane is None:
        raise ValueError(f"channel {name!r} needs the scene's {name} in dB a pixel: make the scene with {name}=...")
    return plane


def _linear(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values - low) * (2.0 / (high - low)) - 1.0, -1.0, 1.0).astype(np.float32)

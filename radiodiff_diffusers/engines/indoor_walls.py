"""The indoor baseline: free space, less what the walls on the straight ray take."""

from __future__ import annotations

import numpy as np

from ..rays import through_walls
from ..scene import GainScale, RadioMap, Scene
from .free_space_gain import free_space_db


def indoor(scene: Scene, *, most_walls: int = 10) -> RadioMap:
    """Free-space gain with antenna pattern, less the transmittance (dB) of every wall the straight ray has passed.

    A wall counts where the ray leaves it, so a receiver inside a wall does not pay for it. After `most_walls` walls no
    more are added: by then the power comes another way.
    """
    if scene.transmittance is None:
        raise ValueError("indoor needs to know the walls: make the scene with transmittance=(H, W) dB, 0 in air")
    if most_walls < 0:
        raise ValueError(f"most_walls must not be negative; got {most_walls}")
    x, y = scene.require_transmitter("indoor")
    if scene._cut_from is not None:  # walls beyond the crop matter
        gain = scene.cut_from_whole(indoor(scene._cut_from[0], most_walls=most_walls).gain_db)
    else:
        gain = free_space_db(scene) - through_walls(scene.transmittance, float(x), float(y), most_walls)
    gain = np.maximum(gain, GainScale.INDOOR.floor_db)
    return RadioMap(gain, scale=GainScale.INDOOR, metres_per_pixel=scene.metres_per_pixel)

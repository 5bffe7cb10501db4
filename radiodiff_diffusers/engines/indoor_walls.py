"""The indoor baseline: free space, less what the walls on the straight ray take."""

from __future__ import annotations

import numpy as np
from numba import njit

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
        whole, left, top = scene._cut_from
        height, width = scene.shape
        gain = indoor(whole, most_walls=most_walls).gain_db[top : top + height, left : left + width]
    else:
        gain = free_space_db(scene) - wall_loss_db(scene.transmittance, x, y, most_walls)
    gain = np.maximum(gain, GainScale.INDOOR.floor_db)
    return RadioMap(gain, scale=GainScale.INDOOR, metres_per_pixel=scene.metres_per_pixel)


@njit(cache=True, nogil=True)
def wall_loss_db(transmittance, x, y, most_walls):
    """(H, W) float32: dB of the walls that the ray from (x, y) has left behind on its way to each pixel's centre."""
    height, width = transmittance.shape
    loss = np.zeros((height, width), np.float32)
    for row in range(height):
        for column in range(width):
            steps = int(np.ceil(max(abs(column - x), abs(row - y))))
            inside, walls, total = 0.0, 0, 0.0
            for k in range(steps + 1):
                s = k / steps if steps > 0 else 1.0
                r = min(max(int(np.floor(y + s * (row - y) + 0.5)), 0), height - 1)
                c = min(max(int(np.floor(x + s * (column - x) + 0.5)), 0), width - 1)
                here = transmittance[r, c]
                if inside > 0.0 and here <= 0.0:
                    total += inside
                    walls += 1
                    if walls >= most_walls:
                        break
                inside = here
            loss[row, column] = total if most_walls > 0 else 0.0
    return loss

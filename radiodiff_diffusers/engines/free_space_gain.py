"""Free-space gain, with the antenna's pattern where the scene has one."""

from __future__ import annotations

import numpy as np

from ..scene import GainScale, RadioMap, Scene

SPEED_OF_LIGHT = 299_792_458.0
NEAREST = 0.125  # metres; nearer than this the formula means nothing


def free_space(scene: Scene) -> RadioMap:
    """Gain in dB with nothing in the way (Friis), antenna pattern and azimuth included.

    Indoor scenes (those with `transmittance` or `reflectance`) come out on the indoor scale with a value on every
    pixel, outdoor ones on RadioMapSeer's scale with its floor in buildings.
    """
    gain = free_space_db(scene)
    if scene.transmittance is not None or scene.reflectance is not None:
        return RadioMap(gain, scale=GainScale.INDOOR, metres_per_pixel=scene.metres_per_pixel)
    gain[scene.buildings] = GainScale.RADIOMAPSEER.floor_db
    return RadioMap(gain, metres_per_pixel=scene.metres_per_pixel)


def free_space_db(scene: Scene) -> np.ndarray:
    """(H, W) float32: -20 log10(4 pi d f / c) plus the antenna's gain towards each pixel."""
    x, y = scene.require_transmitter("free_space")
    height, width = scene.shape
    dx = (np.arange(width) - x)[None, :]
    dy = (np.arange(height) - y)[:, None]
    rise = scene.transmitter_height - scene.receiver_height
    distance = np.sqrt((dx**2 + dy**2) * scene.metres_per_pixel**2 + rise**2)
    gain = -20.0 * np.log10(np.maximum(distance, NEAREST) * (4.0 * np.pi * scene.frequency_hz / SPEED_OF_LIGHT))
    return (gain + antenna_gain_db(scene)).astype(np.float32)


def antenna_gain_db(scene: Scene) -> np.ndarray:
    """(H, W) gain of the antenna towards each pixel; 0 for an isotropic one.

    The pattern is read at (180 - angle of the way back to the transmitter + azimuth) degrees, the convention of the
    ICASSP 2025 indoor data.
    """
    if scene.antenna_pattern is None:
        return np.zeros(scene.shape)
    x, y = scene.require_transmitter("the antenna's gain")
    height, width = scene.shape
    back = np.degrees(np.arctan2((y - np.arange(height))[:, None], (x - np.arange(width))[None, :]))
    return np.interp(180.0 - back + scene.azimuth, np.arange(360.0), scene.antenna_pattern, period=360.0)

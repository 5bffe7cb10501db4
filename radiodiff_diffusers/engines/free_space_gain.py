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


def loss_at_one_metre(scene: Scene) -> float:
    """Free-space loss at 1 m, dB: 47.86 at 5.9 GHz."""
    return 20.0 * float(np.log10(4.0 * np.pi * scene.frequency_hz / SPEED_OF_LIGHT))


def ground_reflectance(scene: Scene, permittivity: complex, away: np.ndarray) -> np.ndarray:
    """|Gamma|^2 of the ground for vertical polarisation, at the angle of a bounce between the two antennas."""
    elevation = np.arctan2(scene.transmitter_height + scene.receiver_height, away)
    along = permittivity * np.sin(elevation)
    across = np.sqrt(permittivity - np.cos(elevation) ** 2)
    return np.abs((along - across) / (along + across)) ** 2


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
    """(H, W) gain of the scene's antenna towards each pixel, dB; 0 for an isotropic one.

    The pattern's entry is (azimuth - bearing) in whole degrees, where bearing is the pixel's direction seen from the
    antenna, clockwise from the right as the picture lies: the azimuth is the bearing of the pattern's first entry, the
    convention of the ICASSP 2025 indoor data.
    """
    if scene.antenna_pattern is None:
        return np.zeros(scene.shape, np.float32)
    x, y = scene.require_transmitter("the antenna's gain")
    height, width = scene.shape
    across = np.arange(width, dtype=np.float32)[None, :] - np.float32(x)
    down = np.arange(height, dtype=np.float32)[:, None] - np.float32(y)
    bearing = np.degrees(np.arctan2(down, across))
    degree = np.floor((scene.azimuth - bearing) % 360.0).astype(np.int64) % 360
    return scene.antenna_pattern[degree]

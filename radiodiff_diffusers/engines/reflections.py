"""Rays on the ground that walls reflect: a ray tracer in two dimensions, for antennas far below the roofs."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from scipy.ndimage import uniform_filter

from ..geometry import distance_metres
from ..rays import GRAZE, obstructed_metres
from ..scene import RadioMap, Scene
from .dominant_paths import City, free_start, prepared
from .free_space_gain import SPEED_OF_LIGHT, ground_reflectance

RAYS = 8192  # half a pixel apart at 650 pixels
MAX_DEPTH = 5
FAINTEST = 1e-6  # of the power: a ray that reflections have left less of is given up
# ITU-R P.2040, 1 to 100 and 1 to 10 GHz: relative permittivity, and conductivity in S/m as c f^d with f in GHz.
CONCRETE = (5.24, 0.0462, 0.7822)
MEDIUM_DRY_GROUND = (15.0, 0.035, 1.63)


def reflected_rays(scene: Scene, *, max_depth: int = MAX_DEPTH, city: City | None = None) -> RadioMap:
    """The power of the straight ray and of all rays that walls reflect up to `max_depth` times, ground included.

    What ray tracing between upright walls gives where nothing bends round corners or passes over roofs, at a fiftieth
    of its cost. Walls are concrete. `city` is what `engines.prepare(scene)` made, for many transmitters in one city.
    Buildings, and pixels that no ray reaches, come out at the scale's floor.
    """
    scene.require_transmitter("reflected_rays")
    if max_depth != int(max_depth) or max_depth < 0:
        raise ValueError(f"max_depth must be a whole number from 0 up; got {max_depth!r}")
    if scene._cut_from is not None and city is None:  # the walls beyond the crop reflect, too
        gain = scene.cut_from_whole(reflected_rays(scene._cut_from[0], max_depth=max_depth).gain_db)
        return RadioMap(gain, metres_per_pixel=scene.metres_per_pixel)
    ground = _permittivity(MEDIUM_DRY_GROUND, scene.frequency_hz)
    reflectance = ground_reflectance(scene, ground, np.maximum(distance_metres(scene), 1e-3))
    power = reflected_power(scene, int(max_depth), city) * (1.0 + reflectance)
    floor = RadioMap.scale.floor_db
    gain = np.maximum(10.0 * np.log10(np.maximum(power, 1e-30)), floor)
    return RadioMap(np.where(scene.footprint, floor, gain).astype(np.float32), metres_per_pixel=scene.metres_per_pixel)


def reflected_power(scene: Scene, max_depth: int = MAX_DEPTH, city: City | None = None) -> np.ndarray:
    """(H, W) power gain (no dB) of the straight ray and of those that walls reflect; without the ground."""
    streets = (city or prepared(scene)).open
    x, y, home = free_start(streets, *scene.transmitter)
    wavelength = SPEED_OF_LIGHT / scene.frequency_hz
    reached = np.zeros(scene.shape)
    concrete = _permittivity(CONCRETE, scene.frequency_hz)
    _launch(x, y, home, *streets.ground.mesh, scene.metres_per_pixel, wavelength, concrete, max_depth, reached)
    reached = uniform_filter(reached, 3, mode="nearest")  # what the finite number of rays leaves uneven
    away = np.maximum(distance_metres(scene), 1.0)
    straight = (wavelength / (4 * np.pi * away)) ** 2 * (obstructed_metres(scene) <= GRAZE)
    return straight + reached


def _permittivity(material: tuple[float, float, float], frequency_hz: float) -> complex:
    ghz = frequency_hz / 1e9
    permittivity, factor, power = material
    return complex(permittivity, -17.98 * factor * ghz**power / ghz)


@njit(cache=True, nogil=True)
def _launch(x0, y0, home, points, triangles, neighbours, metres, wavelength, permittivity, max_depth, reached):
    """Add to `reached` what each ray leaves in the pixels it crosses after its first reflection.

    The free ground's triangles carry a ray from edge to edge; an edge without a neighbour is a wall, or the border.
    """
    height, width = reached.shape
    left, right = points[:, 0].min() + 1e-6, points[:, 0].max() - 1e-6
    top, bottom = points[:, 1].min() + 1e-6, points[:, 1].max() - 1e-6
    share = 2.0 * math.pi / RAYS
    for ray in range(RAYS):
        angle = (ray + 0.5) * share
        dx, dy = math.cos(angle), math.sin(angle)
        x, y, triangle = x0, y0, home
        length, power = 0.0, 1.0
        for bounce in range(max_depth + 1):
            x, y, triangle, run, nx, ny = _run_to_wall(x, y, triangle, dx, dy, points, triangles, neighbours)
            if run < 0.0:
                break
            if bounce > 0:
                # (wavelength / 4 pi d)^2 on the d * share that lie between this ray and the next
                scale = power * (wavelength / (4.0 * math.pi * metres)) ** 2 * share
                for k in range(int(run) + 1):
                    step = min(1.0, run - k)
                    back = run - (k + 0.5 * step)
                    column = int(math.floor(x - back * dx + 0.5))
                    row = int(math.floor(y - back * dy + 0.5))
                    if 0 <= row < height and 0 <= column < width:
                        reached[row, column] += scale * step / (length + run - back)
            length += run
            if x <= left or x >= right or y <= top or y >= bottom:
                break
            cosine = dx * nx + dy * ny
            root = np.sqrt(permittivity - (1.0 - cosine * cosine))
            power *= abs((cosine - root) / (cosine + root)) ** 2
            if power < FAINTEST:
                break
            dx -= 2.0 * cosine * nx
            dy -= 2.0 * cosine * ny


@njit(cache=True, nogil=True)
def _run_to_wall(x, y, triangle, dx, dy, points, triangles, neighbours):
    """Where a ray meets a wall: the place, its triangle, the way there (below 0: lost), the wall's outward normal."""
    run = 0.0
    for _ in range(10_000):
        nearest, through, nx, ny = math.inf, -1, 0.0, 0.0
        for edge in range(3):
            a, b = points[triangles[triangle, edge]], points[triangles[triangle, (edge + 1) % 3]]
            out_x, out_y = b[1] - a[1], a[0] - b[0]
            towards = dx * out_x + dy * out_y
            if towards > 0.0:
                way = ((a[0] - x) * out_x + (a[1] - y) * out_y) / towards
                if way < nearest:
                    nearest, through, nx, ny = way, edge, out_x, out_y
        if through < 0:
            break
        nearest = max(nearest, 0.0)
        x, y, run = x + nearest * dx, y + nearest * dy, run + nearest
        following = neighbours[triangle, through]
        if following < 0:
            size = math.hypot(nx, ny)
            return x, y, triangle, run, nx / size, ny / size
        triangle = following
    return x, y, triangle, -1.0, 0.0, 0.0

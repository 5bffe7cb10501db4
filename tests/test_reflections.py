"""Rays that walls reflect: against image sources, where the answer is known."""

import numpy as np
import pytest
from test_engines import box, city

from radiodiff_diffusers.engines import free_space, prepare, reflected_rays
from radiodiff_diffusers.engines.reflections import CONCRETE, _permittivity, reflected_power
from radiodiff_diffusers.scene import Scene

WAVELENGTH = 299_792_458 / 5.9e9


def friis(metres):
    return (WAVELENGTH / (4 * np.pi * metres)) ** 2


def reflectance(cosine):
    root = np.sqrt(_permittivity(CONCRETE, 5.9e9) - (1 - cosine**2))
    return np.abs((cosine - root) / (cosine + root)) ** 2


@pytest.mark.parametrize("metres", [1.0, 0.5])
def test_a_long_wall_is_a_mirror(metres):
    wall = box(-200, 60.25, 264, 80)
    scene = city(wall, size=(80, 64), transmitter=(12.0, 20.0), metres_per_pixel=metres)
    rows, columns = np.nonzero(~scene.buildings)
    inside = (rows > 2) & (rows < 56) & (columns > 2) & (columns < 61)
    rows, columns = rows[inside], columns[inside]
    away = np.hypot(columns - 12.0, rows - 20.0)
    beyond = np.hypot(columns - 12.0, 2 * 60.25 - 20.0 - rows)
    mirrored = reflectance((2 * 60.25 - 20.0 - rows) / beyond) * friis(beyond * metres)
    far = away > 3
    expected = (friis(np.maximum(away * metres, 1.0)) + mirrored)[far]
    found = reflected_power(scene)[rows, columns][far]
    assert np.abs(10 * np.log10(found / expected)).max() < 0.3
    only_mirrored = found - friis(np.maximum(away * metres, 1.0))[far]
    assert np.abs(10 * np.log10(only_mirrored / mirrored[far])).max() < 1.0


def test_it_turns_and_flips_with_the_scene():
    block = box(20.3, 14.2, 34.1, 40.4)
    scene = city(block, box(42, 44, 60, 61), size=(64, 64), transmitter=(10.0, 30.0))
    one = reflected_rays(scene).gain_db
    mirrored = tuple((ring[0] * (-1, 1) + (63, 0),) for ring in scene.polygons)
    other = reflected_rays(Scene(scene.buildings[:, ::-1], transmitter=(53.0, 30.0), polygons=mirrored)).gain_db
    free = ~scene.buildings & (one > -130) & (other[:, ::-1] > -130)
    assert np.median(np.abs(one - other[:, ::-1])[free]) < 0.05
    assert (np.abs(one - other[:, ::-1])[free] < 1.0).mean() > 0.98


def test_without_reflections_it_is_free_space_and_the_ground_in_sight_and_nothing_behind():
    scene = city(box(30, -20, 40, 90), transmitter=(10.0, 30.0))
    gain = reflected_rays(scene, max_depth=0).gain_db
    assert (gain[:, 42:] == -147).all() and (gain[scene.buildings] == -147).all()
    beyond = gain[:, :29] - free_space(scene).gain_db[:, :29]
    beyond = beyond[np.hypot(np.arange(29)[None] - 10, np.arange(64)[:, None] - 30) > 2]
    assert (beyond >= -1e-3).all() and beyond.max() < 10 * np.log10(2)


def test_reflections_reach_behind_a_corner():
    walls = (box(-10, 36, 30, 75), box(-10, -12, 75, 12))
    scene = city(*walls, box(44, 36, 75, 75), transmitter=(4.0, 24.0))
    straight, once, often = (reflected_rays(scene, max_depth=n).gain_db for n in (0, 1, 5))
    street = np.s_[50:62, 32:43]  # the side street, out of sight
    assert (straight[street] == -147).any()
    assert (often >= once).all() and (once >= straight).all()
    assert (often[street] > -140).mean() > (straight[street] > -140).mean()


def test_same_scene_same_bytes_crops_cities_and_wrong_calls():
    scene = city(box(20, 20, 40, 44), transmitter=(10.0, 10.0))
    whole = reflected_rays(scene).gain_db
    assert np.array_equal(whole, reflected_rays(scene.replace(), city=prepare(scene)).gain_db)
    assert np.array_equal(reflected_rays(scene.crop(8, 16, 32, 24)).gain_db, whole[16:40, 8:40])
    assert np.allclose(-47.86 - 80 * (scene.plane("reflected_loss") + 1), np.minimum(whole, -47.86), atol=0.05)
    with pytest.raises(ValueError, match="max_depth"):
        reflected_rays(scene, max_depth=-1)
    with pytest.raises(ValueError, match="reflected_rays needs to know"):
        reflected_rays(Scene(scene.buildings))
    empty = reflected_rays(Scene(np.zeros((32, 32), bool), transmitter=(3, 4))).gain_db
    assert np.isfinite(empty).all() and empty.argmax() == 4 * 32 + 3

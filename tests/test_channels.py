"""Condition channels: exact rays, honest errors, crops that see the whole."""

import time

import numpy as np
import pytest

from radiodiff_diffusers import channels, rays
from radiodiff_diffusers.channels import channel_names, compute_channel, condition_planes, register_channel
from radiodiff_diffusers.engines import dominant_path
from radiodiff_diffusers.geometry import distance_metres
from radiodiff_diffusers.scene import Scene


def town(size=96, seed=0, transmitter=(50, 47)):
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, size), bool)
    for _ in range(size // 5):
        x, y, w, h = *rng.integers(0, size - 12, 2), *rng.integers(4, 12, 2)
        mask[y : y + h, x : x + w] = True
    mask[transmitter[1] - 3 : transmitter[1] + 4, transmitter[0] - 3 : transmitter[0] + 4] = False
    return Scene(mask, transmitter=transmitter)


def covered_by_dense_sampling(scene, row, column, samples=20_001):
    x0, y0 = scene.transmitter
    at = (np.arange(samples) + 0.5) / samples
    columns = np.floor(x0 + at * (column - x0) + 0.5).astype(int)
    rows = np.floor(y0 + at * (row - y0) + 0.5).astype(int)
    return scene.obstacles[rows, columns].mean() * np.hypot(column - x0, row - y0)


def test_obstruction_is_exact():
    for transmitter in ((50, 47), (50.3, 46.8)):
        scene = town(transmitter=(50, 47)).replace(transmitter=transmitter)
        exact = rays.obstructed_metres(scene)
        for row, column in np.random.default_rng(1).integers(0, 96, (200, 2)):
            assert exact[row, column] == pytest.approx(covered_by_dense_sampling(scene, row, column), abs=0.03)


def test_rays_scale_with_the_pixel():
    scene = town()
    assert np.allclose(
        rays.obstructed_metres(scene.replace(metres_per_pixel=2.5)), 2.5 * rays.obstructed_metres(scene)
    )


def test_rays_turn_with_the_scene():
    scene = town(transmitter=(48, 40))
    turned = Scene(np.rot90(scene.buildings).copy(), transmitter=(40, 95 - 48))
    for name in ("visibility", "obstruction", "log_distance"):
        assert np.allclose(np.rot90(scene.plane(name)), turned.plane(name), atol=1e-5), name


def test_a_raster_drawn_off_the_map_moves_the_rays_not_the_pixels():
    mask = np.zeros((20, 20), bool)
    mask[8:12, 10] = True
    centred = Scene(mask, transmitter=(2, 10)).plane("visibility")
    moved = Scene(mask, transmitter=(2, 10), raster_offset=(-0.45, 0.45)).plane("visibility")
    assert centred[10, 19] == -1 and moved[10, 19] == -1
    assert centred[13, 18] == -1 and moved[13, 18] == 1  # half a pixel lower, the ray passes under the wall
    assert np.array_equal(centred[:, :10], moved[:, :10])
    with pytest.raises(ValueError, match="inside the pixel"):
        Scene(mask, raster_offset=(0.5, 0))


def test_an_empty_field_is_all_in_sight():
    scene = Scene(np.zeros((32, 48)), transmitter=(10, 20))
    assert (scene.plane("visibility") == 1).all() and (scene.plane("obstruction") == -1).all()
    loss, turn = rays.detour(scene)
    metres = distance_metres(scene)
    assert np.allclose(loss, 25 * np.log10(np.maximum(metres, 1)), atol=1e-4) and (turn == 0).all()


def test_one_wall_costs_one_corner():
    mask = np.zeros((80, 80), bool)
    mask[40:42, 30:80] = True  # a wall open on the left
    scene = Scene(mask, transmitter=(60, 60), building_height=1000.0)  # too high to climb over
    loss, turn = rays.detour(scene)
    x, y = 60, 20
    corner = np.array([29.0, 41.0])
    before, after = corner - (60, 60), np.array([x, y]) - corner
    angle = np.degrees(np.arccos(before @ after / np.linalg.norm(before) / np.linalg.norm(after)))
    length = np.linalg.norm(before) + np.linalg.norm(after)
    in_turns = 2 * 2.26 + 0.154 * angle  # round both edges of the wall's end
    assert turn[y, x] == pytest.approx(in_turns, abs=5)  # on a raster an edge may count as two corners, or as none
    assert loss[y, x] == pytest.approx(28 * np.log10(length) + in_turns, abs=5)


def test_the_detour_is_the_engines_way():
    scene = town(96, 5, (50, 47))
    gain = dominant_path(scene).gain_db
    loss, _ = rays.detour(scene)
    free = ~scene.buildings
    at_one_metre = 20 * np.log10(4 * np.pi * scene.frequency_hz / 299_792_458)
    assert np.allclose(gain[free], np.maximum(-at_one_metre - loss[free], -147), atol=1e-3)


def test_a_scene_says_whether_its_outlines_are_known():
    scene = town()
    assert (scene.plane("outlines_known") == -1).all()
    square = (np.array([[10, 10], [20, 10], [20, 20], [10, 20]], float),)
    assert (scene.replace(polygons=(square,)).plane("outlines_known") == 1).all()


def test_border_rays_agree_with_exact_ones():
    scene = town(200, 3, (101, 97))
    exact = rays._cast_exactly(scene.obstacles, *map(float, scene.transmitter), 0.0, 0.0)
    quick = rays._cast_to_border(scene.obstacles, *map(float, scene.transmitter), 0.0, 0.0)
    assert ((exact > 0) == (quick > 0)).mean() > 0.97
    assert np.abs(exact - quick).mean() < 0.35


PLAIN = "buildings transmitter visibility obstruction log_distance free_space".split()
PLAIN += ["detour_loss", "detour_turn", "outlines_known"]


@pytest.mark.parametrize("name", PLAIN)
def test_every_channel_of_a_plain_scene_lies_in_range(name):
    plane = compute_channel(name, town())
    assert plane.shape == (96, 96) and plane.dtype == np.float32 and np.abs(plane).max() <= 1


@pytest.mark.parametrize("name", ["cars", "k2", "measurements", "measured"])
def test_a_scene_that_lacks_a_plane_says_so(name):
    with pytest.raises(ValueError, match="lacks"):
        compute_channel(name, town())


def test_a_scene_without_transmitter_says_so():
    with pytest.raises(ValueError, match="needs to know the transmitter"):
        compute_channel("visibility", Scene(np.zeros((16, 16))))


def test_measurements_keep_zero_apart_from_unknown():
    gain = np.full((96, 96), np.nan)
    gain[3, 4] = -97.42
    scene = town().replace(measurements=gain)
    assert scene.plane("measurements")[3, 4] == pytest.approx(0, abs=1e-4)
    assert scene.plane("measured").sum() == pytest.approx(2 - 96 * 96)


def test_a_crop_sees_what_stands_between_it_and_the_transmitter():
    scene = town(transmitter=(50, 47))
    part = scene.crop(60, 60, 30, 30)
    for name in ("visibility", "obstruction", "log_distance", "detour_loss"):
        assert np.array_equal(part.plane(name), scene.plane(name)[60:90, 60:90]), name
    assert (part.plane("transmitter") == -1).all()


def test_names_may_repeat_and_unknown_ones_list_the_known():
    assert condition_planes(town(), ["buildings", "transmitter", "buildings"]).shape == (3, 96, 96)
    with pytest.raises(ValueError, match="unknown condition channel 'altitude'; known: .*buildings, cars"):
        condition_planes(town(), ["altitude"])


def test_registered_channels_are_checked(monkeypatch):
    monkeypatch.setattr(channels, "_CHANNELS", dict(channels._CHANNELS))
    register_channel("half")(lambda scene: np.full(scene.shape, 0.5))
    assert "half" in channel_names() and town().plane("half").mean() == 0.5
    register_channel("loud")(lambda scene: np.full(scene.shape, 2.0))
    register_channel("nan")(lambda scene: np.full(scene.shape, np.nan))
    register_channel("small")(lambda scene: np.zeros((2, 2)))
    for name, line in (("loud", "must lie in"), ("nan", "must lie in"), ("small", "shape")):
        with pytest.raises(ValueError, match=line):
            town().plane(name)
    with pytest.raises(ValueError, match="registered already"):
        register_channel("half")(lambda scene: None)


@pytest.mark.slow
def test_ray_channels_are_fast():
    scene = town(256, 1, (128, 128))
    rays.obstructed_metres(scene)
    best = min(_seconds(scene) for _ in range(5))
    assert best < 0.05


def _seconds(scene):
    fresh = scene.replace(name="again")
    started = time.perf_counter()
    fresh.plane("visibility"), fresh.plane("obstruction"), fresh.plane("log_distance")
    return time.perf_counter() - started

"""Symmetries and crops of scene and map together."""

import numpy as np
import pytest

from radiodiff_diffusers import channels
from radiodiff_diffusers.data.plane_cache import PlaneCache
from radiodiff_diffusers.scene import GainScale, RadioMap, Scene
from radiodiff_diffusers.training.augment import (
    SYMMETRIES,
    apply_symmetry,
    crop_pair,
    draw_symmetry,
    middle_crop,
    random_crop,
    turn_plane,
    turn_scene,
)

RAY_CHANNELS = ["buildings", "transmitter", "visibility", "obstruction", "log_distance"]


def make_pair(height=40, width=40, seed=0, **fields):
    rng = np.random.default_rng(seed)
    buildings = np.zeros((height, width), bool)
    for _ in range(6):
        y, x = rng.integers(2, height - 8), rng.integers(2, width - 8)
        buildings[y : y + 5, x : x + 3] = True
    free = np.argwhere(~buildings)
    y, x = free[rng.integers(len(free))]
    rows, columns = np.mgrid[:height, :width]
    gain = -50 - 30 * np.log10(1 + np.hypot(rows - y, columns - x)) - 0.1 * columns
    return Scene(buildings, transmitter=(float(x), float(y)), **fields), RadioMap(gain.astype(np.float32))


@pytest.mark.parametrize("turns, flip", SYMMETRIES)
@pytest.mark.parametrize("shape", [(40, 40), (32, 48)])
def test_map_and_channels_turn_alike(turns, flip, shape):
    scene, radio_map = make_pair(*shape)
    turned, turned_map = apply_symmetry(scene, radio_map, turns, flip)
    assert np.array_equal(turned_map.gain_db, turn_plane(radio_map.gain_db, turns, flip))
    for channel in RAY_CHANNELS:
        expected = turn_plane(scene.plane(channel), turns, flip)
        # a ray through a corner of a building may fall on either side of it
        assert np.mean(np.abs(turned.plane(channel) - expected) > 1e-5) < 0.005, channel


@pytest.mark.parametrize("turns, flip", SYMMETRIES)
def test_the_shift_between_mask_and_map_turns_along(turns, flip):
    """RadioMapSeer's masks lie half a pixel off its maps, in a direction that a mirror changes."""
    scene, _ = make_pair(raster_offset=(-0.4, 0.3))
    turned = turn_scene(scene, turns, flip)
    for channel in ("visibility", "obstruction"):
        expected = turn_plane(scene.plane(channel), turns, flip)
        assert np.mean(np.abs(turned.plane(channel) - expected) > 1e-5) < 0.005, channel


@pytest.mark.parametrize("turns, flip", SYMMETRIES)
def test_channels_that_a_cache_has_read_are_turned_and_not_computed_anew(turns, flip, tmp_path, monkeypatch):
    scene, radio_map = make_pair(40, 48)
    fresh = {channel: scene.plane(channel) for channel in ("obstruction", "log_distance")}
    cache = PlaneCache(tmp_path, tuple(fresh))
    cache.fill(scene.replace())
    read = cache.fill(scene.replace())
    monkeypatch.setattr(channels, "compute_channel", None)
    turned, _ = apply_symmetry(read, radio_map, turns, flip)
    for channel, plane in fresh.items():
        assert np.abs(turned.plane(channel) - turn_plane(plane, turns, flip)).max() < 1e-4, channel
    monkeypatch.undo()
    part, _ = apply_symmetry(*crop_pair(read, radio_map, 4, 7, 20), turns, flip)
    assert np.abs(part.plane("obstruction") - turn_plane(fresh["obstruction"][7:27, 4:24], turns, flip)).max() < 1e-4


@pytest.mark.parametrize("turns, flip", SYMMETRIES)
def test_the_antenna_and_the_walls_turn_along(turns, flip):
    """The indoor channels of the turned scene are the turned channels, lopsided antenna included."""
    rng = np.random.default_rng(3)
    pattern = rng.uniform(-20, 0, size=360).astype(np.float32)
    scene, radio_map = make_pair()
    loss = np.where(scene.buildings, 6.0, 0.0).astype(np.float32)
    scene = scene.replace(azimuth=35.5, antenna_pattern=pattern, reflectance=loss, transmittance=loss)
    turned, _ = apply_symmetry(scene, radio_map, turns, flip)
    for channel in ("antenna_gain", "free_space_loss", "reflectance", "transmittance", "distance", "wall_loss"):
        expected = turn_plane(scene.plane(channel), turns, flip)
        # the pattern has whole degrees: a direction on the border of two may fall on either side
        assert np.mean(np.abs(turned.plane(channel) - expected) > 1e-4) < 0.01, channel


def test_everything_else_turns_along():
    scene, _ = make_pair()
    ring = np.array([[3.0, 4.0], [9.0, 4.0], [9.0, 8.0]])
    measured = np.full(scene.shape, np.nan, np.float32)
    measured[2, 5] = -80
    scene = scene.replace(cars=np.roll(scene.buildings, 7, 1), measurements=measured, polygons=((ring,),))
    turned = turn_scene(scene, 1, False)
    assert turned.measurements[39 - 5, 2] == -80  # column 5 becomes row 34, row 2 becomes column 2
    assert np.array_equal(turned.cars, np.rot90(scene.cars))
    assert np.array_equal(turned.polygons[0][0], np.stack([ring[:, 1], 39 - ring[:, 0]], 1))


def test_symmetries_are_a_group():
    """Four quarter turns, and two mirrors, are nothing; the eight results differ."""
    scene, radio_map = make_pair()
    there = scene
    for _ in range(4):
        there = turn_scene(there, 1, False)
    assert np.array_equal(there.buildings, scene.buildings) and there.transmitter == scene.transmitter
    maps = {apply_symmetry(scene, radio_map, *s)[1].gain_db.tobytes() for s in SYMMETRIES}
    assert len(maps) == 8


def test_oblong_maps_keep_their_shape():
    rng = np.random.default_rng(0)
    drawn = {draw_symmetry((32, 48), rng) for _ in range(100)}
    assert drawn == {(0, False), (0, True), (2, False), (2, True)}
    assert {draw_symmetry((32, 32), rng) for _ in range(300)} == set(SYMMETRIES)
    assert {draw_symmetry((32, 32), rng, flips_only=True) for _ in range(50)} == {(0, False), (0, True)}


@pytest.mark.parametrize("turns, flip", [(1, False), (3, True)])
def test_a_crop_turns_with_the_whole_it_was_cut_from(turns, flip):
    scene, radio_map = make_pair(40, 48)
    part, part_map = crop_pair(scene, radio_map, 4, 7, 20)
    turned, turned_map = apply_symmetry(part, part_map, turns, flip)
    for channel in ("buildings", "visibility", "log_distance"):
        expected = turn_plane(part.plane(channel), turns, flip)
        assert np.mean(np.abs(turned.plane(channel) - expected) > 1e-5) < 0.01
    assert np.array_equal(turned_map.gain_db, turn_plane(part_map.gain_db, turns, flip))


def test_random_crops_keep_the_transmitter_where_asked():
    scene, radio_map = make_pair(64, 80)
    rng = np.random.default_rng(0)
    outside = 0
    for _ in range(60):
        part, part_map = random_crop(scene, radio_map, 24, rng, keep_transmitter=True, margin=3)
        x, y = part.transmitter
        assert part.shape == part_map.shape == (24, 24)
        column, row = part.transmitter_pixel[1], part.transmitter_pixel[0]
        near_border = min(*scene.transmitter, 79 - scene.transmitter[0], 63 - scene.transmitter[1]) < 3
        assert near_border or (3 <= column <= 20 and 3 <= row <= 20)
        part, part_map = random_crop(scene, radio_map, 24, rng)
        outside += part.transmitter_pixel is None
        left, top = scene.transmitter[0] - part.transmitter[0], scene.transmitter[1] - part.transmitter[1]
        window = np.s_[int(top) : int(top) + 24, int(left) : int(left) + 24]
        assert np.array_equal(part_map.gain_db, radio_map.gain_db[window])
        assert np.array_equal(part.plane("visibility"), scene.plane("visibility")[window])
    assert 0 < outside < 60


def test_middle_crop_moves_only_as_far_as_the_transmitter_needs():
    scene, radio_map = make_pair(64, 64)
    plain, _ = middle_crop(scene, radio_map, 16)
    assert plain.transmitter == (scene.transmitter[0] - 24, scene.transmitter[1] - 24)
    kept, _ = middle_crop(scene, radio_map, 16, keep_transmitter=True)
    assert kept.transmitter_pixel is not None


def test_impossible_crops_say_so():
    scene, radio_map = make_pair()
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="crop is 64 pixels but the map only 40 x 40"):
        random_crop(scene, radio_map, 64, rng)
    with pytest.raises(ValueError, match="leaves no room"):
        random_crop(scene, radio_map, 16, rng, keep_transmitter=True, margin=8)


def test_indoor_scale_goes_along():
    scene, radio_map = make_pair()
    radio_map = RadioMap(radio_map.gain_db, scale=GainScale.INDOOR, metres_per_pixel=0.25)
    _, turned = apply_symmetry(scene, radio_map, 1, True)
    assert turned.scale is GainScale.INDOOR and turned.metres_per_pixel == 0.25

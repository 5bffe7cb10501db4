"""The ray tracing engine: closed forms, shadows, repeatability, and what it says where something is missing."""

import numpy as np
import pytest

from radiodiff_diffusers import Scene
from radiodiff_diffusers.data.cities import generate_city, transmitters
from radiodiff_diffusers.engines import dominant_path, ray_tracing, sionna_rt

FREE_SPACE_AT_1_M = 20 * np.log10(299_792_458.0 / (4 * np.pi * 5.9e9))

missing = sionna_rt.missing_for_ray_tracing()
needs_sionna = pytest.mark.skipif(missing is not None, reason=missing or "")
QUICK = {"samples": 200_000, "max_depth": 2}


def box(x0, y0, x1, y1):
    return (np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)], float),)


def scene_of(*boxes, size=96, transmitter=(48, 48), **more):
    from radiodiff_diffusers.geometry import rasterize

    return Scene(rasterize(boxes, (size, size)), polygons=boxes, transmitter=transmitter, **more)


def distance(scene):
    rows, columns = np.indices(scene.shape)
    return np.hypot(columns - scene.transmitter[0], rows - scene.transmitter[1]) * scene.metres_per_pixel


@needs_sionna
def test_an_empty_field_is_free_space():
    scene = scene_of(transmitter=(20, 70), metres_per_pixel=2.0)
    gain = ray_tracing(scene, ground=False, **QUICK).gain_db
    expected = FREE_SPACE_AT_1_M - 20 * np.log10(np.maximum(distance(scene), 1))
    assert np.abs(gain - expected).max() < 0.01


@needs_sionna
def test_the_ground_adds_at_most_one_equal_path_and_nearly_so_far_away():
    scene = scene_of(transmitter=(5, 48))
    added = ray_tracing(scene, **QUICK).gain_db - ray_tracing(scene, ground=False, **QUICK).gain_db
    assert added.min() >= 0 and added.max() < 3.02
    assert added[48, 95] > 1.5  # 90 m away: 1.9 degrees
    brewster = np.degrees(np.arctan2(3.0, distance(scene)[48]))  # tan = 1 / sqrt(permittivity): some 15 degrees
    assert 12 < brewster[6:][np.argmin(added[48, 6:])] < 18


@needs_sionna
def test_a_wall_reflects_like_its_mirror_image():
    """Beside a long metal wall, the power at a pixel is that of the transmitter and of its image."""
    scene = scene_of(box(-200, 60, 300, 90), transmitter=(48, 40))
    gain = ray_tracing(scene, ground=False, walls="metal", samples=3_000_000, max_depth=1, diffraction=False).gain_db
    rows, columns = np.indices(scene.shape)
    power = 0
    for y in (40, 80):
        power = power + (10 ** (FREE_SPACE_AT_1_M / 10)) / np.maximum(np.hypot(columns - 48, rows - y), 1) ** 2
    off = (gain - 10 * np.log10(power))[5:58, 5:91]
    assert np.abs(np.median(off)) < 0.1 and np.quantile(np.abs(off), 0.95) < 0.5


@needs_sionna
def test_shadows_lie_where_the_dominant_path_has_them():
    city = generate_city(1, style="apartments")
    scene = city.replace(transmitter=transmitters(city, 1, np.random.default_rng(0))[0])
    traced = ray_tracing(scene, ground=False, samples=500_000).gain_db
    path = dominant_path(scene, sight_exponent=2.0).gain_db
    free = ~scene.buildings
    friis = FREE_SPACE_AT_1_M - 20 * np.log10(np.maximum(distance(scene), 1))
    seen_by_rays = free & (traced >= friis - 0.01)
    seen_by_paths = free & (path >= friis - 0.2)
    assert 0.1 < seen_by_paths[free].mean() < 0.9
    # what the direct ray reaches both see; reflections may make a few shadowed pixels as bright
    assert (seen_by_rays & seen_by_paths).sum() > 0.97 * seen_by_paths.sum()
    assert traced[free & ~seen_by_paths].mean() < traced[seen_by_paths].mean() - 15
    assert (traced[scene.buildings] == -147).all()


@needs_sionna
def test_diffraction_lights_what_one_edge_can_reach():
    scene = scene_of(box(40, 60, 57, 70), transmitter=(48, 40))
    without = ray_tracing(scene, ground=False, diffraction=False, **QUICK).gain_db
    with_it = ray_tracing(scene, ground=False, diffraction=True, **QUICK).gain_db
    beside, behind = np.s_[72:90, 58:60], np.s_[80:95, 45:52]
    assert (without[beside] == -147).all()
    assert (with_it[beside] > -147).mean() > 0.9
    friis = FREE_SPACE_AT_1_M - 20 * np.log10(distance(scene)[beside])
    assert (with_it[beside] < friis - 6).all()
    assert (with_it[behind] == -147).all()  # two edges away


@needs_sionna
def test_several_transmitters_at_once_and_the_same_again():
    city = scene_of(box(20, 20, 40, 30), box(60, 50, 70, 80))
    scenes = [city.replace(transmitter=place) for place in [(10, 10), (50, 40), (80, 90)]]
    together = ray_tracing(scenes, seed=3, **QUICK)
    alone = ray_tracing(scenes[1], seed=3, **QUICK)
    assert len(together) == 3 and np.array_equal(together[1].gain_db, alone.gain_db)
    other = ray_tracing(scenes[1], seed=4, **QUICK)
    assert not np.array_equal(other.gain_db, alone.gain_db)


@needs_sionna
def test_a_courtyard_is_open_and_its_building_closed():
    ring = (box(20, 20, 70, 70)[0], box(35, 35, 55, 55)[0][::-1])
    from radiodiff_diffusers.geometry import rasterize

    scene = Scene(rasterize([ring], (96, 96)), polygons=[ring], transmitter=(45, 45))
    gain = ray_tracing(scene, diffraction=False, **QUICK).gain_db
    assert (gain[37:54, 37:54] > -90).all() and (gain[:18] == -147).all()


@needs_sionna
def test_masks_without_outlines_and_cars_work():
    buildings = np.zeros((64, 64), bool)
    buildings[10:20, 10:50] = True
    cars = np.zeros_like(buildings)
    cars[40:42, 30:34] = True
    scene = Scene(buildings, transmitter=(32, 50))
    plain = ray_tracing(scene, ground=False, **QUICK).gain_db
    parked = ray_tracing(scene.replace(cars=cars), ground=False, **QUICK).gain_db
    assert plain[30, 32] > parked[30, 32] + 3


@needs_sionna
def test_a_transmitter_drawn_into_a_wall_stands_just_outside():
    scene = scene_of(box(20, 20, 70, 60), transmitter=(45, 59))
    gain = ray_tracing(scene, ground=False, **QUICK).gain_db
    assert gain[80, 45] == pytest.approx(FREE_SPACE_AT_1_M - 20 * np.log10(80 - 60.1), abs=0.5)


@needs_sionna
@pytest.mark.parametrize(
    "change, message",
    [
        ({"antenna_pattern": np.zeros(360)}, "isotropic antennas only"),
        ({"transmitter": None}, "needs to know the transmitter"),
        ({"building_height": 1.0}, "both ends below the roofs"),
        ({"frequency_hz": 1e6}, "ray_tracing: "),
    ],
)
def test_what_it_cannot_do_it_says_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        ray_tracing(scene_of(box(5, 5, 20, 20)).replace(**change), **QUICK)
    assert "\n" not in str(caught.value)


@needs_sionna
def test_wrong_options_get_one_line():
    scene = scene_of(box(5, 5, 20, 20))
    with pytest.raises(ValueError, match="samples must be a whole number from 1 up; got 0"):
        ray_tracing(scene, samples=0)
    with pytest.raises(ValueError, match="differ in their transmitters only"):
        ray_tracing([scene, scene_of(box(5, 5, 30, 20))])
    with pytest.raises(ValueError, match="ray_tracing: "):
        ray_tracing(scene, walls="cheese")


def test_without_an_llvm_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("DRJIT_LIBLLVM_PATH", "/nowhere/libLLVM.so")
    monkeypatch.setattr(sionna_rt, "_has_cuda", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert sionna_rt.find_llvm() is None
    with pytest.raises(ImportError, match="apt-get install libllvm19"):
        ray_tracing(scene_of(box(5, 5, 20, 20)))


def test_old_llvm_libraries_are_passed_over(monkeypatch):
    monkeypatch.delenv("DRJIT_LIBLLVM_PATH", raising=False)
    there = [
        "usr/lib/x/libLLVM-14.so.1",
        "usr/lib/x/libLLVM-15.so.1",
        "usr/lib/x/libLLVM.so.20.1",
        "usr/lib/x/libLLVM.so.18.1",
    ]
    from pathlib import Path

    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: [Path("/" + p) for p in there] if "*/lib" in pattern else []
    )
    assert sionna_rt.find_llvm().name in {"libLLVM.so.20.1", "libLLVM.so.18.1"}
    there[2:] = []
    assert sionna_rt.find_llvm() is None


def test_walls_and_roof_share_their_vertices():
    ring = (box(0, 0, 30, 20)[0], box(10, 8, 20, 12)[0][::-1])
    vertices, faces = sionna_rt.extrude([ring], 25.0, 2.0)
    assert len(vertices) == 16 and vertices[:, 2].max() == 25
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert np.abs(normal[:, 2]).sum() / 2 == pytest.approx((600 - 40) * 4)  # the roof, in square metres
    assert np.linalg.norm(normal[:, :2], axis=1).sum() / 2 == pytest.approx((100 + 28) * 2 * 25)  # the walls

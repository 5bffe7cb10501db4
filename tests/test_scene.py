"""Scene and RadioMap: what is accepted, what is refused, and in which words."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from radiodiff_diffusers.scene import RADIOMAPSEER_RASTER_OFFSET, GainScale, RadioMap, Scene
from radiodiff_diffusers.training.augment import apply_symmetry


def field(height=40, width=60):
    mask = np.zeros((height, width), bool)
    mask[10:20, 20:40] = True
    return mask


def test_buildings_may_be_an_array_an_image_or_a_path(tmp_path):
    mask = field()
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    image.save(tmp_path / "city.png")
    image.convert("RGBA").save(tmp_path / "colour.png")
    for given_as in (mask, mask.astype(np.uint8), mask * 255.0, mask.astype(np.float64), image, tmp_path / "city.png",
                     str(tmp_path / "colour.png")):  # fmt: skip
        assert np.array_equal(Scene(given_as).buildings, mask)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda m: m.astype(np.int64), None),
        (lambda m: np.where(m, 0.51, 0.5), None),
        (lambda m: np.where(m, 128, 127).astype(np.uint8), None),
        (lambda m: np.where(m, 255.0, np.arange(60) % 128), None),  # a smooth picture's dark grays are ground
        (lambda m: np.where(m, 128, 0).astype(np.uint8), None),
        (lambda m: np.where(m, 29, 0).astype(np.uint8), None),  # blue on black, say
        (lambda m: np.where(m, 65535, 0).astype(np.uint16), None),
        (lambda m: np.where(m, 1, -1), None),
        (lambda m: np.where(m, 20.0, 0.0), None),  # all of one height
        (lambda m: m * 0, "none"),
        (lambda m: m * 0 + 255, "all"),
        (lambda m: np.where(m, 20.0, np.arange(60) % 2), "from 0 to 20"),
        (lambda m: np.where(m, 2, np.arange(60) % 2), "from 0 to 2"),
        (lambda m: np.where(m, 900.0, np.arange(60) % 2), "from 0 to 900"),
        (lambda m: np.where(m, 1.0, np.arange(60) % 2 - 1.0), "from -1 to 1"),
        (lambda m: -m.astype(int), "from -1 to 0"),
        (lambda m: m * 0 + 100, "from 100 to 100"),
    ],
)
@pytest.mark.parametrize("name", ["buildings", "cars"])
def test_values_of_masks_are_understood_or_refused(made, expected, name):
    planes = {"buildings": field()} | {name: made(field())}
    if expected in (None, "none", "all"):
        mask = {None: field(), "none": field() & False, "all": field() | True}[expected]
        assert np.array_equal(getattr(Scene(**planes), name), mask)
    else:
        with pytest.raises(ValueError, match=f"{name} holds values {expected}: it takes.*{name} > 0"):
            Scene(**planes)


def test_a_scene_without_buildings_is_a_field():
    scene = Scene(np.zeros((16, 16)), transmitter=(3, 4))
    assert not scene.buildings.any() and scene.transmitter_pixel == (4, 3)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"transmitter": (70, 5)}, "outside the map of 60 x 40"),
        ({"transmitter": (30, 15)}, "inside a building"),
        ({"transmitter": (np.nan, 5)}, "must be finite"),
        ({"transmitter": 7}, r"two numbers \(x, y\)"),
        ({"cars": np.zeros((4, 4))}, "cars is 4 x 4 pixels but buildings is 60 x 40"),
        ({"buildings": np.zeros((40, 60, 3))}, r"one \(height, width\) plane"),
        ({"buildings": np.full((40, 60), np.nan)}, "not finite"),
        ({"buildings": np.array([["a", "b"]])}, "must hold numbers"),
        ({"buildings": np.zeros((1, 1))}, "too small"),
        ({"buildings": np.zeros((0, 0))}, "empty"),
        ({"metres_per_pixel": 0}, "above 0"),
        ({"frequency_hz": "fast"}, "must be a number"),
        ({"raster_offset": 0.4}, r"two numbers \(dx, dy\)"),
        ({"raster": "fine"}, "raster must be one of radiomapseer, exact; got 'fine'"),
        ({"raster": "exact", "raster_offset": (0.1, 0)}, "contradict each other"),
        ({"antenna_pattern": np.zeros(10)}, "360"),
        ({"measurements": np.full((40, 60), np.inf)}, "not finite"),
    ],
)
def test_wrong_input_is_one_line(change, line):
    with pytest.raises(ValueError, match=line) as caught:
        Scene(**{"buildings": field(), **change})
    assert "\n" not in str(caught.value)


def test_a_transmitter_just_inside_a_wall_is_a_drawing_error():
    scene = Scene(field(), transmitter=(21, 15))  # the second pixel of the wall
    assert scene.buildings[15, 21] and not scene.obstacles[15, 21]
    with pytest.raises(ValueError, match="inside a building"):
        Scene(field(), transmitter=(23, 15))


def test_files_that_are_no_maps(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "whole.png")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "noise.png").read_bytes()[:1000])
    for path, line in [
        ("text.png", "not an image"),
        ("gone.png", "no such file"),
        (".", "folder"),
        ("cut.png", "damaged"),
    ]:
        with pytest.raises(ValueError, match=line) as caught:
            Scene(tmp_path / path)
        assert "\n" not in str(caught.value)


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)  # the header alone: decoding it would fail
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(png)
    with pytest.raises(ValueError, match="20000 x 20000 pixels, over"):
        Scene(tmp_path / "huge.png")


def test_a_crop_keeps_its_transmitter():
    scene = Scene(field(), transmitter=(5, 30), measurements=np.full((40, 60), np.nan))
    part = scene.crop(20, 5, 30, 20)
    assert part.shape == (20, 30) and part.transmitter == (-15, 25) and part.transmitter_pixel is None
    again = part.crop(2, 3, 10, 10)
    assert again.transmitter == (-17, 22)
    assert np.array_equal(again.buildings, scene.buildings[8:18, 22:32])
    with pytest.raises(ValueError, match="does not lie inside"):
        scene.crop(50, 0, 20, 10)


def test_a_crop_with_other_numbers_stays_a_crop():
    scene = Scene(field(), transmitter=(5, 30), antenna_pattern=-np.abs(np.arange(360.0) - 180))
    part = scene.crop(20, 5, 30, 20)
    turned = part.replace(azimuth=90, name="turned")
    assert (turned.azimuth, turned.name, part.azimuth) == (90, "turned", 0) and turned.transmitter == (-15, 25)
    whole = scene.replace(azimuth=90)
    for channel in ("antenna_gain", "obstruction"):
        assert np.array_equal(turned.plane(channel), whole.plane(channel)[5:25, 20:50])
    assert not np.array_equal(turned.plane("antenna_gain"), part.plane("antenna_gain"))


def test_a_crop_with_other_planes_is_a_scene_of_its_own():
    scene = Scene(field(), transmitter=(5, 30))
    part = scene.crop(20, 5, 30, 20)
    with pytest.raises(ValueError, match=r"other buildings is a scene of its own.*\(-15, 25\) lies outside") as caught:
        part.replace(buildings=np.zeros((20, 30)))
    assert "\n" not in str(caught.value)
    assert part.replace(buildings=np.zeros((20, 30)), transmitter=(3, 3)).plane("visibility").min() == 1
    assert part.replace(cars=np.zeros((20, 30)), transmitter=None).transmitter is None
    assert scene.crop(0, 20, 20, 20).replace(polygons=None).transmitter == (5, 10)


def test_the_raster_has_a_name():
    mask = np.zeros((16, 16), bool)
    mask[4:8, 4:8] = True
    assert Scene(mask, (12, 12)).raster == "exact"
    scene = Scene(mask, (12, 12), raster="radiomapseer")
    assert scene.raster == "radiomapseer" and scene.raster_offset == RADIOMAPSEER_RASTER_OFFSET
    by_offset = Scene(mask, (12, 12), raster_offset=RADIOMAPSEER_RASTER_OFFSET)
    assert by_offset.raster == "radiomapseer"
    assert np.array_equal(scene.plane("visibility"), by_offset.plane("visibility"))
    for other in (scene.replace(azimuth=9), scene.crop(1, 1, 14, 14), scene.crop(1, 1, 14, 14).replace(azimuth=9)):
        assert other.raster == "radiomapseer"
    for whole in (scene, scene.crop(1, 1, 14, 14)):
        assert whole.replace(raster="exact").raster_offset == (0, 0)
        assert whole.replace(raster_offset=(0.1, 0.2)).raster is None
    assert scene.replace(raster_offset=(0.1, 0.2)).replace(raster="radiomapseer").raster == "radiomapseer"
    turned, _ = apply_symmetry(scene, RadioMap(np.zeros((16, 16))), 1, False)
    assert turned.raster is None and turned.raster_offset == (0.45, 0.45)


def test_replace_names_unknown_fields():
    assert Scene(field()).replace(frequency_hz=2e9).frequency_hz == 2e9
    with pytest.raises(ValueError, match="no field 'frequenzy'"):
        Scene(field()).replace(frequenzy=1)


@settings(max_examples=50, deadline=None)
@given(st.floats(-200, 50))
def test_scales_are_inverse_where_they_do_not_clip(gain):
    for scale in (GainScale.RADIOMAPSEER, GainScale.INDOOR):
        low, high = sorted((scale.db_at_0, scale.db_at_255))
        expected = min(max(gain, low), high)
        assert scale.to_db(scale.to_gray(gain)) == pytest.approx(expected, abs=2e-4)
        assert scale.from_unit(scale.to_unit(gain)) == pytest.approx(expected, abs=2e-4)


def test_gray_is_what_the_data_set_says():
    assert GainScale.RADIOMAPSEER.to_db(np.array([0, 255])) == pytest.approx([-147, -47.84])
    assert GainScale.INDOOR.to_db(np.array([13, 160])) == pytest.approx([-13, -160])


@pytest.mark.parametrize("ending", ["png", "npz", "tif", "NPZ"])
def test_a_map_loads_as_it_was_saved(tmp_path, ending):
    gain = np.random.default_rng(0).uniform(-140, -50, (12, 20)).astype(np.float32)
    saved = RadioMap(gain, std_db=np.ones_like(gain), metres_per_pixel=2.0)
    loaded = RadioMap.load(saved.save(tmp_path / f"deep/map.{ending}"))
    assert np.abs(loaded.gain_db - gain).max() < (0.2 if ending == "png" else 1e-6)
    if ending == "npz":
        assert loaded.metres_per_pixel == 2.0 and loaded.scale == saved.scale and (loaded.std_db == 1).all()
    with pytest.raises(ValueError, match="use .png, .npz or .tif"):
        saved.save(tmp_path / "map.jpg")


def test_what_is_no_saved_map_is_said_in_one_line(tmp_path):
    whole = RadioMap(np.random.default_rng(0).uniform(-140, -50, (40, 40))).save(tmp_path / "whole.npz")
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "other.npz", values=1)
    for name in ("cut.npz", "text.npz", "empty.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"{name} is no radio map") as caught:
            RadioMap.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="gone.npz: no such file"):
        RadioMap.load(tmp_path / "gone.npz")


def test_a_map_is_one_plane():
    with pytest.raises(ValueError, match="one"):
        RadioMap(np.zeros((2, 3, 4)))
    assert json.dumps(RadioMap(np.zeros((8, 8))).to_image().size) == "[8, 8]"

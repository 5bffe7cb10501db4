"""Layouts from GeoJSON, well-known text, RadioMapSeer's outlines and masks; and what broken ones are answered."""

import json

import numpy as np
import pytest
from PIL import Image

from radiodiff_diffusers.data.layout_files import is_town, scene_from_file, town_from_file
from radiodiff_diffusers.geometry import rasterize


def feature(*rings, kind="Polygon"):
    return {"type": "Feature", "properties": {}, "geometry": {"type": kind, "coordinates": list(rings)}}


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def collection(*features, crs=None):
    made = {"type": "FeatureCollection", "features": list(features)}
    return made | ({"crs": {"type": "name", "properties": {"name": crs}}} if crs else {})


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_metres_with_a_hole_a_crossing_ring_and_either_direction(tmp_path):
    ring_with_hole = feature(square(500_000, 5_000_000, 40), square(500_010, 5_000_010, 20)[::-1])
    bow_tie = feature([[500_060, 5_000_000], [500_080, 5_000_020], [500_080, 5_000_000], [500_060, 5_000_020]])
    bow_tie["geometry"]["coordinates"][0].append([500_060, 5_000_000])
    clockwise = feature(square(500_060, 5_000_030, 10)[::-1])
    line = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}}
    path = write(tmp_path / "town.geojson", collection(ring_with_hole, bow_tie, clockwise, line, crs="EPSG:25832"))
    scene = scene_from_file(path, transmitter=(45, 5))
    assert scene.shape == (40, 80) and scene.name == "town" and scene.metres_per_pixel == 1
    assert scene.buildings.sum() == pytest.approx(40**2 - 20**2 + 200 + 100, abs=25)
    assert scene.buildings[2, 5] and not scene.buildings[20, 20] and not scene.buildings[30, 70 - 20 + 1]
    assert scene.buildings[5, 65]  # north is up: the clockwise house stands in the north
    coarse = scene_from_file(path, metres_per_pixel=2.0)
    assert coarse.shape == (20, 40) and coarse.buildings.mean() == pytest.approx(scene.buildings.mean(), abs=0.03)


def test_degrees_become_metres(tmp_path):
    pytest.importorskip("pyproj")
    # 0.001 degrees of longitude at 48 degrees north are 74.6 m, of latitude 111.2 m
    path = write(
        tmp_path / "t.json", feature([[11.5, 48], [11.501, 48], [11.501, 48.001], [11.5, 48.001], [11.5, 48]])
    )
    (house,) = town_from_file(path)
    assert house.area == pytest.approx(74.6 * 111.2, rel=0.003)
    scene = scene_from_file(path, size=64, centre=(11.5, 48.0))
    assert scene.shape == (64, 64)
    assert scene.buildings[:31, 34:].all() and not scene.buildings[:, :29].any() and not scene.buildings[34:].any()
    southern = write(tmp_path / "s.json", feature([[x, -y] for x, y in [[11.5, 48], [11.501, 48], [11.501, 48.001]]]))
    data = json.loads(southern.read_text())
    data["geometry"]["coordinates"][0].append(data["geometry"]["coordinates"][0][0])
    assert town_from_file(write(southern, data))[0].area == pytest.approx(74.6 * 111.2 / 2, rel=0.003)


def test_feet_and_web_mercator_are_not_taken_for_metres(tmp_path):
    pytest.importorskip("pyproj")
    house = feature(square(1_280_000, 6_106_000, 100))
    stretched = write(tmp_path / "m.json", collection(house, crs="urn:ogc:def:crs:EPSG::3857"))
    # Web Mercator's metres are those of the equator: at 48 degrees north 0.67 m
    latitude = np.pi / 2 - 2 * np.arctan(np.exp(-6_106_050 / 6_378_137))
    assert town_from_file(stretched)[0].area == pytest.approx(10_000 * np.cos(latitude) ** 2, rel=0.005)
    named = collection(feature(square(691_000, 5_334_000, 60))) | {"crs": "EPSG:25832"}
    assert town_from_file(write(tmp_path / "n.json", named))[0].area == pytest.approx(3600)  # UTM is metres as it is
    with pytest.raises(ValueError, match="n.json names a coordinate system in a way that is not known"):
        town_from_file(write(tmp_path / "n.json", named | {"crs": {"type": "link"}}))
    feet = write(tmp_path / "f.json", collection(feature(square(6_000_000, 2_100_000, 100)), crs="EPSG:2227"))
    assert town_from_file(feet)[0].area == pytest.approx((100 * 0.3048) ** 2, rel=0.002)


def test_radiomapseer_outlines_are_on_the_gains_raster(tmp_path):
    rings = [square(10, 20, 30), square(100, 200, 12)]
    scene = scene_from_file(write(tmp_path / "0.json", rings))
    assert scene.shape == (256, 256)
    inside = np.argwhere(scene.buildings[:, :60])
    assert inside.min(axis=0).tolist() == [207, 9] and inside.max(axis=0).tolist() == [236, 38]
    polygons = [(np.array(ring) * (1, -1) + (-1, 256),) for ring in rings]
    assert np.array_equal(scene.buildings, rasterize(polygons, (256, 256)))


def test_wkt_and_masks(tmp_path):
    path = write(
        tmp_path / "a.wkt", "POLYGON ((0 0, 20 0, 20 10, 0 10, 0 0))\nPOLYGON ((40 0, 60 0, 60 10, 40 10, 40 0))\n"
    )
    scene = scene_from_file(path)
    assert scene.shape == (10, 60) and scene.buildings.sum() == 400 and is_town(path)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:10, 5:15] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    drawn = scene_from_file(tmp_path / "m.png", metres_per_pixel=0.5)
    assert drawn.buildings.sum() == 50 and drawn.metres_per_pixel == 0.5 and not is_town(tmp_path / "m.png")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.json", "{", "is not JSON"),
        ("a.json", "[1, 2]", "list of rings"),
        ("a.json", "[[[1, 2], [3, 4]]]", "three or more"),
        ("a.json", {"type": "Topology"}, "expected GeoJSON"),
        ("a.json", collection(), "has no polygons"),
        ("a.json", collection({"type": "Feature", "geometry": {"type": "Polygon"}}), "damaged GeoJSON"),
        ("a.json", collection(feature(square(0, 0, 80))), "crs='metres'"),
        ("a.json", collection(feature(square(1e5, 0, 80)), crs="moon"), "unknown coordinate system 'moon'"),
        ("a.wkt", "POLYGON ((0 0", "not well-known text"),
    ],
)
def test_broken_files_get_one_line_with_their_name(tmp_path, name, content, message):
    if "coordinate system" in message:
        pytest.importorskip("pyproj")
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        scene_from_file(path)
    assert str(path) in str(caught.value) or "moon" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_gets_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        scene_from_file(tmp_path / "none.geojson")
    far = write(
        tmp_path / "far.wkt", "POLYGON ((0 0, 9 0, 9 9, 0 0))\nPOLYGON ((9e5 9e5, 910000 9e5, 9e5 910000, 9e5 9e5))"
    )
    with pytest.raises(ValueError, match="give a size and a centre"):
        scene_from_file(far)
    near = write(tmp_path / "near.wkt", "POLYGON ((0 0, 20 0, 20 10, 0 10, 0 0))")
    with pytest.raises(ValueError, match="no buildings within 64 x 64"):
        scene_from_file(near, size=64, centre=(500, 500))
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(ValueError, match="30 x 20 pixels, not 64 x 64"):
        scene_from_file(tmp_path / "m.png", size=64)


def test_a_file_may_say_itself_that_it_is_in_metres(tmp_path):
    plain = collection(feature(square(0, 0, 80)))
    said = write(tmp_path / "said.json", plain | {"crs": "metres"})
    told = write(tmp_path / "told.json", plain)
    assert np.array_equal(scene_from_file(said).buildings, scene_from_file(told, crs="metres").buildings)

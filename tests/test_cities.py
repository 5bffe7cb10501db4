"""Made-up cities: valid, repeatable, varied, and like real ones."""

import importlib.util

import numpy as np
import pytest
import shapely

from radiodiff_diffusers.data.cities import (
    MIN_GAP,
    STYLES,
    generate_city,
    park_cars,
    to_shapely,
    transmitters,
)
from radiodiff_diffusers.data.footprints import CITIES, TEST_CITIES, _outline, city_footprints, footprint_tiles
from radiodiff_diffusers.geometry import rasterize


@pytest.mark.parametrize("style", STYLES)
def test_every_style_makes_valid_separate_buildings_on_whole_metres(style):
    for seed in range(6):
        city = generate_city(seed, style=style)
        shapes = [shapely.Polygon(rings[0], rings[1:]) for rings in city.polygons]
        assert len(shapes) >= 3
        assert all(shape.is_valid and shape.area >= 20 for shape in shapes)
        corners = np.concatenate([ring for rings in city.polygons for ring in rings])
        assert np.array_equal(corners, np.round(corners))
        assert corners.min() >= -1 and corners[:, 0].max() <= 255 and corners[:, 1].max() <= 256
        tree = shapely.STRtree(shapes)
        first, second = tree.query(shapes, predicate="dwithin", distance=MIN_GAP - 0.01)
        assert np.array_equal(first, second), "buildings touch or nearly do"
        assert np.array_equal(rasterize(city.polygons, city.shape), city.buildings)
        assert 0.02 < city.buildings.mean() < 0.65


def test_a_block_too_narrow_for_its_building_stays_empty():
    for seed in (2984338697, *range(50)):
        assert generate_city(seed).buildings.any()


def test_same_seed_same_city_and_other_seed_another():
    one, same, other = generate_city(5), generate_city(5), generate_city(6)
    assert np.array_equal(one.buildings, same.buildings) and one.name == same.name
    rings = [[ring for polygon in city.polygons for ring in polygon] for city in (one, same)]
    assert all(np.array_equal(a, b) for a, b in zip(*rings, strict=True))
    assert not np.array_equal(one.buildings, other.buildings)


def test_seeds_vary_the_style_and_statistics_are_those_of_towns():
    cities = [generate_city(seed) for seed in range(80)]
    assert len({city.name.split("-")[0] for city in cities}) >= 8
    coverage = np.array([city.buildings.mean() for city in cities])
    assert 0.2 < coverage.mean() < 0.36 and coverage.std() > 0.05
    shapes = [shape for city in cities for shape in to_shapely(city.polygons)]
    area = np.array([shape.area for shape in shapes])
    assert 150 < np.median(area) < 350  # map 0 of RadioMapSeer: 232 square metres
    assert sum(len(shape.interiors) > 0 for shape in shapes) > 50  # courtyards


def test_metres_per_pixel_changes_the_grid_and_not_the_buildings():
    city = generate_city(3, size=(96, 160), metres_per_pixel=2.0, style="apartments")
    assert city.shape == (96, 160) and city.metres_per_pixel == 2.0
    area = np.median([shape.area for shape in to_shapely(city.polygons)]) * 4
    assert 100 < area < 500


def test_transmitters_stand_in_the_open_in_the_middle():
    rng = np.random.default_rng(0)
    city = generate_city(2, style="apartments")
    places = transmitters(city, 200, rng)
    assert len(set(places)) == 200
    walls = shapely.union_all(to_shapely(city.polygons))
    distance = shapely.distance(shapely.points(np.array(places, float)), walls)
    assert distance.min() >= 0.1 and (distance < 2.5).mean() > 0.1 and distance.max() > 4
    assert np.abs(np.array(places) - 127.5).max() <= 75
    for place in places[:10]:
        city.replace(transmitter=place)
    assert transmitters(city, 5, np.random.default_rng(4)) == transmitters(city, 5, np.random.default_rng(4))


def test_cars_are_parked_clear_of_walls_and_each_other():
    city = generate_city(4, style="terraces")
    cars = to_shapely(park_cars(city, 30, np.random.default_rng(1)))
    assert len(cars) == 30 and np.allclose([car.area for car in cars], 8.0)
    walls = shapely.union_all(to_shapely(city.polygons))
    assert min(walls.distance(car) for car in cars) > 0.4
    assert min(a.distance(b) for i, a in enumerate(cars) for b in cars[:i]) > 0.4


def test_wrong_arguments_get_one_clear_line():
    with pytest.raises(ValueError, match="unknown city style 'moon': use one of apartments"):
        generate_city(0, style="moon")
    with pytest.raises(ValueError, match="seed from 0 up"):
        generate_city(-1)
    with pytest.raises(ValueError, match="too few for 40000 transmitters"):
        transmitters(generate_city(0), 40_000, np.random.default_rng(0))


# Real towns -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def etoile(tmp_path_factory):
    if importlib.util.find_spec("sionna") is None:
        pytest.skip("the towns' meshes come with sionna-rt, which is not installed")
    patch = pytest.MonkeyPatch()
    cache = tmp_path_factory.mktemp("cache")
    patch.setenv("XDG_CACHE_HOME", str(cache))
    yield footprint_tiles("etoile", stride=64), cache
    patch.undo()


def test_tiles_of_a_real_town_are_valid_and_repeatable(etoile):
    tiles, cache = etoile
    assert len(tiles) >= 10 and len({tile.name for tile in tiles}) == len(tiles)
    for tile in tiles:
        assert tile.shape == (256, 256) and 0.08 <= tile.buildings.mean() < 0.8
        assert np.array_equal(rasterize(tile.polygons, tile.shape), tile.buildings)
        shapes = [shapely.Polygon(rings[0], rings[1:]) for rings in tile.polygons]
        assert all(shape.is_valid for shape in shapes)
        assert shapely.union_all(shapes).area == pytest.approx(sum(shape.area for shape in shapes))
    (cached,) = cache.rglob("*.wkb")
    again = footprint_tiles("etoile", stride=64)  # from the cache
    assert all(np.array_equal(a.buildings, b.buildings) for a, b in zip(tiles, again, strict=True))
    cached.write_bytes(b"damaged")
    assert len(footprint_tiles("etoile", stride=64)) == len(tiles)


def test_the_arc_de_triomphe_stands_on_four_feet(etoile):
    """At eye level its two vaults are open: four feet of some 160 square metres."""
    feet = [part for part in city_footprints("etoile") if shapely.Point(-127, 38).distance(part) < 35]
    assert len(feet) == 4 and all(150 < foot.area < 175 for foot in feet)


def test_florence_is_the_test_city():
    assert TEST_CITIES == ("florence",) and "florence" in CITIES


def test_unknown_town_gets_one_line():
    with pytest.raises(ValueError, match="unknown city 'rome': use one of munich"):
        footprint_tiles("rome")


def test_a_town_is_cut_at_eye_level():
    """A box with a gate: walls from 0 to 10 m, a passage 4 m high, a roof over all."""

    def wall(points, low, high):
        quads = []
        for (ax, ay), (bx, by) in points:
            a, b, c, d = (ax, ay, low), (bx, by, low), (bx, by, high), (ax, ay, high)
            quads += [(a, b, c), (a, c, d)]
        return quads

    def lid(x0, y0, x1, y1, z):
        return [((x0, y0, z), (x1, y0, z), (x1, y1, z)), ((x0, y0, z), (x1, y1, z), (x0, y1, z))]

    def box(x0, y0, x1, y1, low, high):
        ring = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
        return wall(list(zip(ring[:-1], ring[1:], strict=True)), low, high) + lid(x0, y0, x1, y1, high)

    house = np.array(box(0, 0, 10, 10, 0, 10) + box(16, 0, 26, 10, 0, 10) + box(10, 0, 16, 10, 4, 10), float)
    outline = _outline(house, 1.5)
    assert outline.area == pytest.approx(200, abs=0.1)
    assert not outline.contains(shapely.Point(13, 5)) and outline.contains(shapely.Point(5, 5))

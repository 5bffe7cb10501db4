"""Made-up cities: valid, repeatable, varied, and like real ones."""

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

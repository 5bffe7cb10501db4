import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shapely import Polygon, contains_xy, make_valid, union_all

from radiodiff_diffusers.geometry import RADIOMAPSEER_MASK_OFFSET, clean_polygons, rasterize, signed_area

SAMPLES = Path(__file__).parents[2] / "shared" / "radiomapseer_samples"
SQUARE = [(1, 1), (8, 1), (8, 8), (1, 8)]
HOLE = [(3, 3), (6, 3), (6, 6), (3, 6)]


def by_shapely(polygons, shape, offset):
    height, width = shape
    x, y = np.meshgrid(np.arange(width) + offset[0], np.arange(height) + offset[1])
    union = union_all([make_valid(Polygon(rings[0], rings[1:]), method="linework") for rings in polygons])
    return contains_xy(union, x, y)


def test_a_square_without_ties_is_its_area():
    mask = rasterize([SQUARE], (10, 12))
    assert mask.shape == (10, 12) and mask.sum() == 49
    assert mask[2:9, 1:8].all()  # the offset looks just right of and above the pixel's centre


def test_neighbours_share_every_pixel_once():
    left, right = [(1, 1), (4, 1), (4, 8), (1, 8)], [(4, 1), (8, 1), (8, 8), (4, 8)]
    for offset in ((0.0, 0.0), (0.5, 0.5), (0.05, -0.05)):
        masks = [rasterize([part], (10, 10), offset) for part in (left, right)]
        assert not (masks[0] & masks[1]).any()
        assert ((masks[0] | masks[1]) == rasterize([SQUARE], (10, 10), offset)).all()


@pytest.mark.parametrize("outside", [SQUARE, SQUARE[::-1], [*SQUARE, SQUARE[0]]])
@pytest.mark.parametrize("hole", [HOLE, HOLE[::-1]])
def test_holes_stay_holes_whichever_way_rings_run(outside, hole):
    mask = rasterize([(outside, hole)], (10, 10))
    assert mask.sum() == 49 - 9
    assert not mask[5, 4] and mask[2, 2]
    # an island in the courtyard is a polygon of its own
    assert rasterize([(outside, hole), [(4, 4), (5, 4), (5, 5), (4, 5)]], (10, 10))[5, 4]


def test_a_ring_that_crosses_itself_means_what_make_valid_makes_of_it():
    bow_tie = [(1, 1), (9, 9), (9, 1), (1, 9)]
    star = [(10 + 9 * np.sin(a), 10 - 9 * np.cos(a)) for a in np.arange(5) * 4 * np.pi / 5]
    for ring in (bow_tie, star):
        offset = (0.21, 0.13)
        assert (rasterize([ring], (20, 20), offset) == by_shapely([(ring,)], (20, 20), offset)).all()
        parts = clean_polygons([ring])
        assert len(parts) > 1 and all(Polygon(part[0], part[1:]).is_valid for part in parts)
        assert (rasterize(parts, (20, 20), offset) == rasterize([ring], (20, 20), offset)).all()


def test_clean_polygons_orients_rings_and_drops_what_has_no_area():
    parts = clean_polygons([(SQUARE[::-1], HOLE), [(0, 0), (5, 5)], [(0, 0), (5, 0), (9, 0)]])
    assert len(parts) == 1
    outside, hole = parts[0]
    assert signed_area(outside) == pytest.approx(49) and signed_area(hole) == pytest.approx(-9)


def test_polygons_may_reach_beyond_the_map_or_miss_it():
    assert rasterize([[(-50, -50), (50, -50), (50, 50), (-50, 50)]], (7, 9)).all()
    assert not rasterize([[(20, 20), (30, 20), (30, 30)]], (7, 9)).any()
    assert not rasterize([], (7, 9)).any()


def test_a_broken_ring_is_refused_in_one_line():
    with pytest.raises(ValueError, match="finite"):
        rasterize([[(0, 0), (1, float("nan")), (2, 2)]], (5, 5))
    with pytest.raises(ValueError, match="ring"):
        rasterize([[(0, 0, 1), (1, 1, 1), (2, 2, 1)]], (5, 5))


coordinates = st.floats(-5, 30, allow_nan=False).map(lambda v: round(v, 3))
rings = st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9)


def by_counting_crossings(polygons, shape, offset):
    """Even-odd the slow way: from every point, count the edges a ray to the right meets."""
    inside = np.zeros(shape, bool)
    for row, column in np.ndindex(shape):
        x, y = column + offset[0], row + offset[1]
        for ring in polygons:
            meets = 0
            for (x0, y0), (x1, y1) in zip(ring, ring[1:] + ring[:1], strict=True):
                if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) > x:
                    meets += 1
            inside[row, column] |= meets % 2 == 1
    return inside


@settings(max_examples=60, deadline=None)
@given(st.lists(rings, max_size=4))
def test_any_polygons_equal_counted_crossings(polygons):
    offset = (0.12345678, -0.23456789)  # off the grid the corners lie on, so that no point is exactly on an edge
    assert (rasterize(polygons, (12, 12), offset) == by_counting_crossings(polygons, (12, 12), offset)).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(rings, max_size=4))
def test_simple_polygons_equal_shapely(outlines):
    offset = (0.12345678, -0.23456789)
    polygons = [(ring,) for ring in outlines if Polygon(ring).is_valid]
    if polygons:
        assert (rasterize(polygons, (25, 25), offset) == by_shapely(polygons, (25, 25), offset)).all()


def test_real_map_0_comes_out_as_its_gain_map():
    if not SAMPLES.is_dir():
        pytest.skip("the RadioMapSeer samples are not here")
    polygons = json.loads((SAMPLES / "polygon/buildings_complete/0.json").read_text())
    pixels = [np.array(ring) * (1, -1) + (-1, 256) for ring in polygons]
    silent = np.asarray(Image.open(SAMPLES / "gain/DPM/0_1.png")) == 0
    assert (rasterize(pixels, (256, 256)) == silent).all()
    assert (rasterize(pixels, (256, 256), offset=(0.05, -0.05)) != silent).sum() == 42
    mask = np.asarray(Image.open(SAMPLES / "png/buildings_complete/0.png")) > 0
    assert (rasterize(pixels, (256, 256), offset=RADIOMAPSEER_MASK_OFFSET) != mask).sum() == 1

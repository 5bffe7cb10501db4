"""The physics engines against closed forms, and the dominant path engine against real maps where they are at hand."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from radiodiff_diffusers import channels_indoor
from radiodiff_diffusers.engines import dominant_path, free_space, indoor, prepare
from radiodiff_diffusers.engines.dominant_paths import PathLaws
from radiodiff_diffusers.engines.ground import covered_area
from radiodiff_diffusers.engines.outlines import (
    NUDGE,
    SPREAD,
    _snap,
    _wrong_pixels,
    outlines,
    whole_metre_outlines,
)
from radiodiff_diffusers.scene import GainScale, Scene

SAMPLES = Path(__file__).parents[2] / "shared" / "radiomapseer_samples"
AT_ONE_METRE = 20 * np.log10(4 * np.pi * 5.9e9 / 299_792_458)
LAWS = PathLaws()


def box(x0, y0, x1, y1):
    return (np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float),)


def city(*polygons, size=(64, 64), transmitter=(10.0, 10.0), **fields):
    """A scene whose buildings are polygons, rasterised at pixel centres."""
    import shapely

    rows, columns = np.mgrid[: size[0], : size[1]]
    area = shapely.union_all([shapely.make_valid(shapely.Polygon(p[0], p[1:])) for p in polygons])
    return Scene(shapely.contains_xy(area, columns, rows), transmitter=transmitter, polygons=polygons, **fields)


def turn(degrees):
    return LAWS.corner_loss + LAWS.corner_loss_per_degree * min(degrees, LAWS.largest_turn)


def loss(scene, **options):
    return -AT_ONE_METRE - dominant_path(scene, **options).gain_db


def distance(scene):
    rows, columns = np.mgrid[: scene.shape[0], : scene.shape[1]]
    return np.hypot(columns - scene.transmitter[0], rows - scene.transmitter[1]) * scene.metres_per_pixel


# Names ---------------------------------------------------------------------------------------------------------------


def test_names_are_functions_whatever_was_imported_before():
    code = (
        "import sys, radiodiff_diffusers.engines.dominant_paths, radiodiff_diffusers.engines.indoor_walls\n"
        "import radiodiff_diffusers.engines.free_space_gain\n"
        "from radiodiff_diffusers.engines import dominant_path, free_space, indoor\n"
        "assert all(type(f).__name__ == 'function' for f in (dominant_path, free_space, indoor))\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_engine_is_an_attribute_error():
    import radiodiff_diffusers.engines as engines

    with pytest.raises(AttributeError, match="no attribute"):
        getattr(engines, "crystal_ball")  # noqa: B009
    assert {"dominant_path", "free_space", "indoor", "ray_tracing"} <= set(dir(engines))


# Dominant path -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metres", [0.25, 1.0, 3.0])
def test_empty_city_is_the_line_of_sight_law(metres):
    scene = Scene(np.zeros((40, 56)), transmitter=(12.3, 20.7), metres_per_pixel=metres)
    expected = 25.0 * np.log10(np.maximum(distance(scene), 1.0))
    np.testing.assert_allclose(loss(scene), expected, atol=1e-4)
    expected = 20.0 * np.log10(np.maximum(distance(scene), 1.0))
    np.testing.assert_allclose(loss(scene, sight_exponent=2.0), expected, atol=1e-4)


def test_the_frequency_sets_the_gain_at_one_metre():
    scene = Scene(np.zeros((32, 32)), transmitter=(8, 8))
    change = dominant_path(scene.replace(frequency_hz=2.95e9)).gain_db - dominant_path(scene).gain_db
    np.testing.assert_allclose(change, 20 * np.log10(2), atol=1e-4)


def test_one_wall_is_passed_with_one_turn():
    """A thin screen too high to climb: behind it the way turns once, at its free end."""
    scene = city(box(30, -5, 31, 40), size=(80, 80), transmitter=(10.0, 30.0), building_height=2000.0)
    corner = np.array([30.0, 41.0])  # the pixel below the screen's end, where the front passes it
    for pixel in ((60, 50), (70, 60), (50, 75)):
        lengths = np.hypot(*(corner - (10, 30))) + np.hypot(*(pixel - corner))
        arrive, leave = corner - (10, 30), pixel - corner
        degrees = np.degrees(np.arctan2(arrive[0] * leave[1] - arrive[1] * leave[0], arrive @ leave))
        if degrees > 0:  # in line of sight
            assert loss(scene)[pixel[1], pixel[0]] == pytest.approx(
                25 * np.log10(np.hypot(pixel[0] - 10, pixel[1] - 30)), abs=1e-3
            )
        else:
            expected = 28 * np.log10(lengths) + turn(-degrees)
            assert loss(scene)[pixel[1], pixel[0]] == pytest.approx(expected, abs=0.5)


def test_a_screen_right_across_is_passed_over_the_roof():
    """Two turns on a broad roof, one on a screen so thin that its near edge sees the ground behind."""
    scene = city(box(29.5, -9, 39.5, 90), size=(80, 80), transmitter=(10.0, 32.0))
    rise = 25.0 - LAWS.roof_drop - 1.5
    for x in (50, 60, 75):
        up, down = np.degrees(np.arctan2(rise, 20)), np.degrees(np.arctan2(rise, x - 39))
        length = np.hypot(20, rise) + 9 + np.hypot(x - 39, rise)
        assert loss(scene)[32, x] == pytest.approx(28 * np.log10(length) + turn(up) + turn(down), abs=0.6)
    screen = city(box(29.5, -9, 30.5, 90), size=(80, 80), transmitter=(10.0, 32.0))
    up, down = np.degrees(np.arctan2(rise, 20)), np.degrees(np.arctan2(rise, 45))
    expected = 28 * np.log10(np.hypot(20, rise) + np.hypot(45, rise)) + turn(up + down)
    assert loss(screen)[32, 75] == pytest.approx(expected, abs=0.3)
    low, high = (loss(scene.replace(building_height=h))[32, 60] for h in (12.0, 40.0))
    assert low < loss(scene)[32, 60] < high


def test_symmetric_scene_gives_a_symmetric_map():
    scene = city(box(12.3, 8.4, 20.2, 18.3), box(43.8, 8.4, 51.7, 18.3), size=(64, 65), transmitter=(32.0, 40.0))
    gain = dominant_path(scene).gain_db
    # Where two ways to a pixel cost exactly the same, either may be kept, and a few pixels behind it differ.
    assert np.mean(np.abs(gain - gain[:, ::-1]) < 1e-3) > 0.995


def test_reciprocity_of_one_corner_ways():
    walls = (box(30.2, -5, 33.4, 40.3),)
    for here, there in (((10, 30), (60, 50)), ((12, 35), (50, 20)), ((20, 38), (45, 30))):
        one = loss(city(*walls, size=(80, 80), transmitter=here, building_height=2000.0))[there[1], there[0]]
        two = loss(city(*walls, size=(80, 80), transmitter=there, building_height=2000.0))[here[1], here[0]]
        assert one == pytest.approx(two, abs=0.6)


def test_shadow_is_never_brighter_than_line_of_sight_and_more_wall_never_helps():
    rng = np.random.default_rng(3)
    for _ in range(5):
        corners = rng.uniform(5, 55, (6, 2))
        blocks = [
            box(x, y, x + w, y + h)
            for (x, y), w, h in zip(corners, rng.uniform(3, 9, 6), rng.uniform(3, 9, 6), strict=True)
        ]
        scene = city(*blocks, transmitter=(2.0, 2.0))
        free = ~scene.buildings
        sight = 25 * np.log10(np.maximum(distance(scene), 1))
        got = loss(scene)
        assert (got[free] >= sight[free] - 1e-3).all()
        assert np.isfinite(got).all() and (dominant_path(scene).gain_db[scene.buildings] == -147).all()


def test_same_scene_same_bytes_with_and_without_a_prepared_city():
    scene = city(box(20, 20, 30, 33), box(40, 5, 50, 50))
    once = dominant_path(scene).gain_db
    prepared = prepare(scene)
    for _ in range(2):
        np.testing.assert_array_equal(once, dominant_path(scene, city=prepared).gain_db)
    other = scene.replace(transmitter=(60.0, 60.0))
    np.testing.assert_array_equal(dominant_path(other).gain_db, dominant_path(other, city=prepared).gain_db)


def test_a_city_of_another_size_is_refused():
    with pytest.raises(ValueError, match="prepared for 64 x 64 pixels, but the scene has 32 x 32"):
        dominant_path(Scene(np.zeros((32, 32)), transmitter=(3, 3)), city=prepare(city(box(20, 20, 30, 30))))


def test_wrong_constants_are_refused_in_one_line():
    scene = Scene(np.zeros((16, 16)), transmitter=(3, 3))
    with pytest.raises(ValueError, match="no constant 'exponent'; it has sight_exponent"):
        dominant_path(scene, exponent=2.0)
    with pytest.raises(ValueError, match="corner_loss must be a finite number"):
        dominant_path(scene, corner_loss=-1.0)


def test_without_a_transmitter_one_line_says_so():
    with pytest.raises(ValueError, match="transmitter"):
        dominant_path(Scene(np.zeros((32, 32))))


def test_rings_may_run_either_way_repeat_their_start_or_cross_themselves():
    ring = box(20, 20, 40, 35)[0]
    plain = dominant_path(city((ring,))).gain_db
    for same in (ring[::-1], np.vstack([ring, ring[:1]]), np.roll(ring, 1, axis=0), np.repeat(ring, 2, axis=0)):
        np.testing.assert_array_equal(plain, dominant_path(city((same,))).gain_db)
    bow_tie = (np.array([(20, 20), (40, 40), (40, 20), (20, 40)], float),)
    gain = dominant_path(city(bow_tie)).gain_db
    assert np.isfinite(gain).all() and (gain > -147).sum() > 3000


def test_a_courtyard_is_reached_over_the_roof_only():
    ring = (box(15, 15, 45, 45)[0], box(24, 24, 36, 36)[0])
    scene = city(ring, transmitter=(5.0, 30.0))
    assert not scene.buildings[30, 30]
    open_ = dominant_path(scene).gain_db
    sealed = dominant_path(
        scene.replace(building_height=1.6)
    ).gain_db  # roofs below the waves' way: nothing climbs them
    assert open_[30, 30] > -147 and sealed[30, 30] == -147
    np.testing.assert_allclose(open_[30, :15], sealed[30, :15], atol=1e-4)


def test_overlapping_and_touching_buildings_are_one():
    one = dominant_path(city(box(20, 20, 40, 30))).gain_db
    two = dominant_path(city(box(20, 20, 32, 30), box(28, 20, 40, 30))).gain_db
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("transmitter", [(20.0, 25.0), (20.0, 20.0), (40.0, 30.0), (21.0, 25.0), (30.5, 20.2)])
def test_a_transmitter_on_or_just_inside_a_wall_radiates_outside(transmitter):
    scene = city(box(20, 20, 40, 30), transmitter=transmitter)
    gain = dominant_path(scene).gain_db
    free = ~scene.buildings
    assert (gain[free] > -147).all()
    best = np.unravel_index(np.where(free, gain, -999).argmax(), gain.shape)
    assert np.hypot(best[1] - transmitter[0], best[0] - transmitter[1]) < 3


def test_a_scene_of_nothing_but_building_is_refused_or_dark():
    scene = Scene(np.zeros((16, 16)), transmitter=(8, 8))
    scene.buildings[:] = True
    with pytest.raises(ValueError, match="no free pixel"):
        dominant_path(scene)


def test_masks_do_nearly_what_polygons_do():
    scene = city(box(20.5, 20.5, 40.5, 30.5), box(8.5, 40.5, 18.5, 55.5), transmitter=(5.0, 5.0))
    exact, traced = dominant_path(scene).gain_db, dominant_path(scene.replace(polygons=None)).gain_db
    free = ~scene.buildings
    assert np.mean(np.abs(exact - traced)[free] < 1.0) > 0.9


def test_oblique_walls_of_a_mask_become_straight():
    from radiodiff_diffusers.engines.outlines import outlines

    rows, columns = np.mgrid[:64, :64]
    oblique = (np.abs(columns - 32 + 0.3 * (rows - 32)) < 8) & (np.abs(rows - 32) < 20)
    (rings,) = outlines(oblique)
    assert len(rings) == 1 and len(rings[0]) <= 10, rings
    assert outlines(np.zeros((8, 8), bool)) == ()


def test_outlines_on_whole_metres_are_found_again():
    """A mask drawn as RadioMapSeer's tells a city's outlines nearly exactly, and with them the map behind them."""
    from radiodiff_diffusers.data.cities import generate_city
    from radiodiff_diffusers.engines.outlines import whole_metre_outlines
    from radiodiff_diffusers.geometry import RADIOMAPSEER_MASK_OFFSET, rasterize

    known = generate_city(5_000_007, size=128, style="apartments")
    free = np.argwhere(~known.buildings)
    row, column = free[np.argmin(np.abs(free - 64).sum(1))]
    known = known.replace(transmitter=(float(column), float(row)))
    mask = rasterize(known.polygons, known.shape, RADIOMAPSEER_MASK_OFFSET)
    seen = Scene(mask, known.transmitter, raster="radiomapseer")
    assert (seen.footprint != known.buildings).mean() < 0.25 * (mask != known.buildings).mean()
    assert all((ring == np.rint(ring)).all() for rings in known.polygons for ring in rings)
    found = whole_metre_outlines(mask, seen.raster_offset)
    assert all((ring == np.rint(ring)).all() for rings in found for ring in rings)
    truth, guess = dominant_path(known).gray, dominant_path(seen).gray
    smooth = dominant_path(seen.replace(raster_offset=(-0.449, 0.449))).gray  # no name: corners anywhere
    worse = np.square(smooth - truth).sum()
    assert np.square(guess - truth).sum() < 0.5 * worse and np.square(guess - truth).sum() < 0.01 * (truth**2).sum()


@pytest.mark.parametrize("shape", [(40, 70), (70, 40)])
def test_the_order_of_a_mask_in_memory_is_nothing_to_its_outlines(shape):
    mask = np.random.default_rng(0).random(shape) < 0.3
    mask[10:30, 12:33] = True
    for guess in (whole_metre_outlines, outlines):
        rows, columns = (guess(order(mask), (0.5, -0.5)) for order in (np.ascontiguousarray, np.asfortranarray))
        assert len(rows) == len(columns)
        for one, other in zip(rows, columns, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_ring_of_whole_metres_is_the_best_of_all_near_its_seed():
    """Of a triangle's 9 ** 3 rings one by one, each wall looked at pixel by pixel."""
    mask = np.zeros((14, 20), bool)
    mask[3:11, 4:17] = np.tri(8, 13, -1, bool)
    mask[0] = True  # and something else at the border

    def wrong(ax, ay, bx, by):
        """Pixels on the wrong side, two on either side of the wall in each column or row, and the wall's wobble."""
        flat = abs(bx - ax) >= abs(by - ay)
        (a, level), (b, end) = ((ax, ay), (bx, by)) if flat else ((ay, ax), (by, bx))
        lines, count, spread = mask.T if flat else mask, 0, 0.0
        for k in range(max(min(a, b), 0), min(max(a, b), len(lines))):
            at = level + (k + 0.5 - a) * (end - level) / (b - a) + NUDGE
            first = math.ceil(at - 0.5)
            spread += (at - first) ** 2
            for j in range(max(first - 2, 0), min(first + 2, lines.shape[1])):
                count += lines[k, j] != ((j >= first) == ((b > a) == flat))
        return count + SPREAD * spread

    seed = np.array([(4.2, 3.4), (15.8, 10.7), (3.6, 11.3)])
    near = [[tuple(np.floor(p + 0.5).astype(int) + (dx, dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)] for p in seed]
    walls = {(p, q): wrong(*p, *q) for i in range(3) for p in near[i] for q in near[(i + 1) % 3] if p != q}
    least = min(walls[p, q] + walls[q, r] + walls[r, p] for p, q, r in itertools.product(*near))
    ring, cost = _snap(_wrong_pixels(mask), seed)
    assert cost == pytest.approx(least)
    corners = [tuple(corner) for corner in ring.astype(int)]
    assert sum(walls[p, q] for p, q in zip(corners, corners[1:] + corners[:1], strict=True)) == pytest.approx(least)


def test_covered_ground_is_what_any_of_the_polygons_covers():
    square, bow_tie = [(0, 0), (8, 0), (8, 8), (0, 8)], [(20, 0), (28, 8), (28, 0), (20, 8)]
    polygons = [
        (square, [(2, 2), (6, 2), (6, 6), (2, 6)]),  # with a yard
        ([(4, 3), (12, 3), (12, 5), (4, 5)],),  # runs into the yard
        ([(12, 5), (14, 5), (14, 9), (12, 9)],),  # touches by a corner
        (bow_tie,),
        ([(30, 0), (35, 0), (40, 0)],),  # a line: nothing
        ([(50, 1), (51, 2)],),
    ]
    covered = covered_area([[np.array(ring, float) for ring in polygon] for polygon in polygons])
    assert covered.area == pytest.approx((64 - 16) + (16 - 4) + 8 + 32)
    assert covered_area([]).is_empty and covered_area(iter([polygons[4]])).is_empty


def test_outlines_keep_yards_and_sheds():
    from radiodiff_diffusers.geometry import RADIOMAPSEER_MASK_OFFSET, rasterize

    mask = np.zeros((40, 40), bool)
    mask[5, 5] = mask[20:30, 20:30] = mask[:3, :4] = mask[35:, 36:] = True
    mask[22:27, 22:27] = False
    mask[10:12, 20:23] = True
    for found in (outlines(mask), whole_metre_outlines(mask, (-0.45, 0.45))):
        assert sorted(len(rings) for rings in found) == [1, 1, 1, 1, 2]
    np.testing.assert_array_equal(rasterize(found, mask.shape, RADIOMAPSEER_MASK_OFFSET), mask)
    assert whole_metre_outlines(np.zeros((8, 8), bool), (-0.45, 0.45)) == ()


@pytest.mark.parametrize("step, usual, mean", [(2, 0.5, 1.0), (3, 1.0, 2.5)])
def test_a_search_of_every_few_pixels_is_exact_in_sight_and_near_in_shadow(step, usual, mean):
    scene = city(box(20, 10, 30, 50), box(40, 5, 52, 20), box(40.5, 30.5, 55.5, 52.5), transmitter=(10.0, 30.0))
    whole, quick = loss(scene), loss(scene, step=step)
    free = ~scene.buildings
    in_sight = free & (np.abs(whole - 25 * np.log10(np.maximum(distance(scene), 1))) < 1e-3)
    assert 0.2 < in_sight[free].mean() < 0.9
    np.testing.assert_allclose(quick[in_sight], whole[in_sight], atol=0.01)
    off = np.abs(quick - whole)[free & ~in_sight]
    assert np.median(off) < usual and np.mean(off) < mean, (np.median(off), np.mean(off))
    with pytest.raises(ValueError, match="step"):
        dominant_path(scene, step=0)


def test_a_quick_search_sees_what_the_whole_one_sees():
    """Also from where the free ground is cut into triangles, and where rays touch a corner on their way."""
    open_ground = np.zeros((64, 64), bool)
    scenes = [Scene(open_ground, (32.0, 32.0)), Scene(open_ground, (20.0, 20.0))]
    scenes += [city(box(29.5, 19.5, 49.5, 59.5), transmitter=place) for place in [(30.0, 19.0), (29.0, 40.0)]]
    for scene in scenes:
        off = np.abs(loss(scene, step=2) - loss(scene))[~scene.buildings]
        assert np.mean(off > 3) < 0.01


@pytest.mark.parametrize("step", [5, 8, 16])
def test_a_rough_search_loses_no_shadow(step):
    scene = city(box(20, 10, 30, 50), box(40, 5, 52, 20), box(40.5, 30.5, 55.5, 52.5), transmitter=(10.0, 30.0))
    whole, quick = loss(scene), loss(scene, step=step)
    free = ~scene.buildings
    assert np.isfinite(quick[free]).all() and np.abs(quick - whole)[free].mean() < 2.5


def test_a_search_of_every_other_pixel_finds_the_way_into_a_lane():
    """One pixel wide, on odd rows and columns, with a bend: the front must not step over its walls or miss it."""
    scene = city(box(20, 2, 40, 30.5), box(20, 31.5, 26.5, 58), box(27.5, 31.5, 40, 58), transmitter=(10.0, 30.0))
    whole, quick = loss(scene), loss(scene, step=2)
    lane = np.s_[40:56, 27]
    assert not scene.buildings[lane].any() and scene.buildings[40:56, [26, 28]].all()
    np.testing.assert_allclose(quick[lane], whole[lane], atol=1.0)


def test_a_crop_knows_the_buildings_beyond_it():
    scene = city(box(20, 10, 30, 50))
    whole = dominant_path(scene).gain_db
    np.testing.assert_array_equal(dominant_path(scene.crop(40, 20, 20, 24)).gain_db, whole[20:44, 40:60])


def test_cars_are_low_obstacles():
    clear = city(box(20, 40, 30, 50), transmitter=(10.0, 20.0))
    cars = np.zeros(clear.shape, bool)
    cars[19:22, 30:34] = True
    parked = clear.replace(cars=cars)
    without, with_ = loss(clear), loss(parked)
    assert with_[20, 50] > without[20, 50] + 2 * LAWS.corner_loss - 1e-3
    # Round the car or over it: never much worse than a turn up and a turn down.
    free = ~(parked.buildings | cars)
    assert (with_[free] <= without[free] + 2 * LAWS.corner_loss + 1e-3).all()
    np.testing.assert_allclose(with_[:15, :], without[:15, :], atol=1e-4)
    assert (dominant_path(parked).gain_db[cars] == -147).all()
    np.testing.assert_array_equal(loss(parked.replace(car_height=1.0))[free], without[free])


# Against real maps ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the RadioMapSeer sample maps are not here")
def test_it_reproduces_real_maps():
    """On the mean of four: RMS at most 1.5 dB (no map above 2.2), 85 % within 0.5 dB, raw NMSE at most 0.002."""
    import shapely

    read = lambda name: np.asarray(Image.open(SAMPLES / name), float)  # noqa: E731
    rings = json.loads((SAMPLES / "polygon/buildings_complete/0.json").read_text())
    polygons = tuple((np.array([(x - 1, 256 - y) for x, y in ring], float),) for ring in rings)
    area = shapely.union_all([shapely.Polygon(p[0]) for p in polygons])
    rows, columns = np.mgrid[:256, :256]
    buildings = shapely.contains_xy(area, columns + 0.05, rows - 0.05)
    mask, places = read("png/buildings_complete/0.png") > 0, json.loads((SAMPLES / "antenna/0.json").read_text())
    prepared, scores = None, []
    for t in (0, 1, 10, 14):
        x, y = places[t]
        scene = Scene(buildings, transmitter=(x, 255 - y), polygons=polygons)
        prepared = prepared or prepare(scene)
        predicted, gray = dominant_path(scene, city=prepared), read(f"gain/DPM/0_{t}.png")
        free = ~mask & (gray > 0)
        error = (predicted.gain_db - GainScale.RADIOMAPSEER.to_db(gray))[free]
        nmse = np.sum((np.rint(predicted.gray) - gray) ** 2) / np.sum(gray**2)
        scores.append((np.sqrt(np.mean(error**2)), np.mean(np.abs(error) <= 0.5), nmse))
    scores = np.array(scores)
    rms, within, nmse = scores.mean(axis=0)
    assert rms <= 1.5 and scores[:, 0].max() <= 2.2, scores
    assert within >= 0.85, scores
    assert nmse <= 0.002, scores


# Free space and indoor -----------------------------------------------------------------------------------------------


def test_free_space_is_friis():
    scene = Scene(np.zeros((32, 48)), transmitter=(5, 7), metres_per_pixel=2.0, frequency_hz=868e6)
    d = np.maximum(distance(scene), 0.125)
    expected = -(20 * np.log10(d) + 20 * np.log10(868) - 27.55)
    np.testing.assert_allclose(free_space(scene).gain_db, expected, atol=0.01)
    walled = scene.replace(buildings=np.arange(48)[None, :].repeat(32, 0) > 40)
    assert (free_space(walled).gain_db[:, 41:] == -147).all()


def test_the_antenna_pattern_turns_with_the_azimuth():
    pattern = np.zeros(360)
    pattern[90] = 12.0
    scene = Scene(np.zeros((41, 41)), transmitter=(20, 20), antenna_pattern=pattern)
    plain = free_space(scene.replace(antenna_pattern=None)).gain_db
    for azimuth, (dx, dy) in ((0, (0, -9)), (90, (9, 0)), (180, (0, 9)), (-90, (-9, 0))):
        gain = free_space(scene.replace(azimuth=float(azimuth))).gain_db - plain
        row, column = np.unravel_index(gain.argmax(), gain.shape)
        assert gain.max() == pytest.approx(12, abs=1e-3)
        assert np.dot((column - 20, row - 20), (dx, dy)) == pytest.approx(
            9 * np.hypot(column - 20, row - 20), abs=1e-6
        )


def test_indoor_walls_add_where_the_ray_leaves_them():
    walls = np.zeros((21, 60), np.float32)
    walls[:, 20], walls[:, 21], walls[:, 40] = 5.0, 5.0, 7.0
    scene = Scene(
        np.zeros((21, 60)), transmitter=(5, 10), transmittance=walls, metres_per_pixel=0.25, frequency_hz=868e6
    )
    extra = free_space(scene).gain_db - indoor(scene).gain_db
    np.testing.assert_allclose(extra[10, [10, 20, 21, 22, 39, 40, 41, 59]], [0, 0, 0, 5, 5, 5, 12, 12], atol=1e-3)
    assert indoor(scene).scale == GainScale.INDOOR
    fewer = free_space(scene).gain_db - indoor(scene, most_walls=1).gain_db
    np.testing.assert_allclose(fewer[10, 50], 5, atol=1e-3)
    assert np.allclose(indoor(scene, most_walls=0).gain_db, free_space(scene).gain_db)


def test_indoor_is_what_the_indoor_channels_add_up_to():
    rng = np.random.default_rng(0)
    walls = np.where(rng.random((40, 60)) < 0.1, rng.uniform(3, 20, (40, 60)), 0).astype(np.float32)
    scene = Scene(
        np.zeros((40, 60)), transmitter=(12, 30), transmittance=walls, metres_per_pixel=0.25, frequency_hz=1.8e9,
        antenna_pattern=rng.uniform(-30, 0, 360), azimuth=33.0,
    )  # fmt: skip
    loss = channels_indoor.free_space_loss_db(scene) + channels_indoor.wall_loss_db(scene)
    np.testing.assert_allclose(indoor(scene).gain_db, np.maximum(-loss, -160), atol=2e-2)  # constants differ by 0.002


def test_indoor_stops_at_ten_walls_and_at_the_scale():
    walls = np.zeros((9, 80), np.float32)
    walls[:, 10:70:3] = 3.0
    scene = Scene(
        np.zeros((9, 80)), transmitter=(2, 4), transmittance=walls, metres_per_pixel=0.25, frequency_hz=868e6
    )
    assert (free_space(scene).gain_db - indoor(scene).gain_db)[4, 79] == pytest.approx(30.0, abs=1e-3)
    assert indoor(scene.replace(transmittance=walls * 30)).gain_db.min() == -160


def test_indoor_without_walls_says_what_is_missing():
    with pytest.raises(ValueError, match="transmittance"):
        indoor(Scene(np.zeros((16, 16)), transmitter=(3, 3)))

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_sets
from PIL import Image

from radiodiff_diffusers.data.collate import collate
from radiodiff_diffusers.data.k2 import k2_feature
from radiodiff_diffusers.data.measurements import measurement_places
from radiodiff_diffusers.data.plane_cache import PlaneCache
from radiodiff_diffusers.data.png import read_gray
from radiodiff_diffusers.data.radiomapseer import RadioMapSeer, read_scene
from radiodiff_diffusers.data.splits import choose_maps, split_maps
from radiodiff_diffusers.geometry import rasterize
from radiodiff_diffusers.scene import RadioMap, Scene
from radiodiff_diffusers.training.data import make_planes

SAMPLES = Path(__file__).parents[2] / "shared" / "radiomapseer_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the RadioMapSeer samples are not here")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tiny_sets.make_radiomapseer(tmp_path_factory.mktemp("seer"), k2=True)


def gray_of(root, name):
    return np.asarray(Image.open(root / name))


# Splits --------------------------------------------------------------------------------------------------------------


def test_splits_are_the_published_ones():
    golden = json.loads((Path(__file__).parent / "goldens" / "metrics_and_splits.json").read_text())["split"]
    train = split_maps("train", "radiodiff")
    assert [f"{k}.png" for k in train[:5]] == golden["train_first5_files"]
    assert train[:10] == [k + 1 for k in golden["shuffled_first10"]]
    assert split_maps("test", "radiodiff")[-10:] == [k + 1 for k in golden["shuffled_last10"]]
    assert [len(split_maps(s, "radiodiff")) for s in ("train", "val", "test")] == [601, 51, 100]
    assert [len(split_maps(s, "radiounet")) for s in ("train", "val", "test")] == [501, 100, 99]


def test_the_originals_split_overlaps_and_the_corrected_one_does_not():
    old = {s: set(split_maps(s, "radiodiff")) for s in ("train", "val", "test")}
    assert old["train"] & old["test"] == {289} and old["val"] < old["test"] and 0 not in old["train"]
    new = {s: split_maps(s) for s in ("train", "val", "test")}
    assert sorted(sum(new.values(), [])) == list(range(701))
    assert 0 in new["train"] and new["test"] == split_maps("test", "radiounet")


def test_simulated_maps_beyond_the_real_numbers_are_split_as_well():
    present = list(range(1000))
    parts = [choose_maps(present, s) for s in ("train", "val", "test")]
    assert sorted(sum(parts, [])) == present
    assert all(set(choose_maps(present[:900], s)) <= set(choose_maps(present, s)) for s in ("train", "val", "test"))
    with pytest.raises(ValueError, match="scheme"):
        split_maps("train", "mine")
    with pytest.raises(ValueError, match="split 'dev'"):
        choose_maps(present, "dev")


# Reading -------------------------------------------------------------------------------------------------------------


def test_it_yields_what_lies_on_disk(tree):
    data = RadioMapSeer(tree, "all")
    assert len(data) == 9 and data.ids(4) == (1, 1)
    scene, radio_map = data[4]
    assert (scene.buildings == (gray_of(tree, "png/buildings_complete/1.png") > 0)).all()
    assert gray_of(tree, "png/antennas/1_1.png")[scene.transmitter_pixel] == 255
    assert scene.cars is None and scene.measurements is None and scene.k2 is None and scene.name == "1_1"
    assert np.allclose(radio_map.gray, gray_of(tree, "gain/DPM/1_1.png"), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ({"simulation": "IRT2"}, "IRT2"),
        ({"simulation": "IRT4"}, "IRT4"),
        ({"cars_in_map": True}, "carsDPM"),
        ({"simulation": "IRT2", "cars_in_map": True}, "carsIRT2"),
    ],
)
def test_each_simulation_reads_its_folder(tree, options, folder):
    data = RadioMapSeer(tree, "all", **options)
    assert len(data) == (6 if folder == "IRT4" else 9)
    assert np.allclose(data[1][1].gray, gray_of(tree, f"gain/{folder}/0_1.png"), atol=1e-3)


def test_mixtures_lie_between_the_two_and_are_drawn_anew_each_epoch(tree):
    data = RadioMapSeer(tree, "all", simulation="rand")
    dpm, irt2 = (gray_of(tree, f"gain/{s}/0_0.png").astype(float) for s in ("DPM", "IRT2"))
    shares = []
    for epoch in range(4):
        data.set_epoch(epoch)
        gray = data[0][1].gray
        where = np.abs(irt2 - dpm) > 20
        share = ((gray - dpm) / (irt2 - dpm + 1e-9))[where]
        assert np.ptp(share) < 1e-3 and 0 <= share.mean() <= 1
        shares.append(share.mean())
        assert np.array_equal(gray, data[0][1].gray)
    assert np.ptp(shares) > 0.05
    only_dpm = RadioMapSeer(tree, "all", simulation="rand", irt2_max_weight=0.0)
    assert np.allclose(only_dpm[0][1].gray, dpm, atol=1e-3)


def test_cars_in_the_input(tree):
    scene, _ = RadioMapSeer(tree, "all", cars_in_input=True)[0]
    assert (scene.cars == (gray_of(tree, "png/cars/0.png") > 0)).all()
    drawn, _ = RadioMapSeer(tree, "all", cars_in_input=True, layout="polygon")[0]
    assert drawn.cars.sum() == 8 and not (drawn.cars & drawn.buildings).any()


@pytest.mark.parametrize("layout", ["png", "polygon"])
def test_missing_buildings_are_missing_in_the_scene_alone(tree, layout):
    scene, radio_map = RadioMapSeer(tree, "all", missing=2, version=3, layout=layout)[0]
    full, full_map = RadioMapSeer(tree, "all", layout=layout)[0]
    assert scene.buildings.sum() < full.buildings.sum() and not (scene.buildings & ~full.buildings).any()
    assert np.array_equal(radio_map.gain_db, full_map.gain_db)
    if layout == "png":
        assert (scene.buildings == (gray_of(tree, "png/buildings_missing2/3/0.png") > 0)).all()


def test_randomly_missing_buildings_change_with_the_epoch_and_not_within_it(tree):
    data = RadioMapSeer(tree, "all", missing="random", seed=3)
    seen = set()
    for epoch in range(8):
        data.set_epoch(epoch)
        assert np.array_equal(data[0][0].buildings, data[0][0].buildings)
        seen.add(data[0][0].buildings.tobytes())
    assert len(seen) > 1


def test_polygon_layout_is_on_the_gains_raster_and_keeps_outlines(tree):
    scene, radio_map = RadioMapSeer(tree, "all", layout="polygon")[0]
    assert ((radio_map.gray == 0) == scene.buildings).all()
    assert len(scene.polygons) == 3 and all(np.array_equal(p[0][0], p[0][-1]) for p in scene.polygons)
    assert (rasterize(scene.polygons, scene.shape) == scene.buildings).all()
    mask = read_scene(tree, 0, 0, "png").buildings
    assert 0 < (mask != scene.buildings).sum() < 200


def test_mixed_layouts_are_drawn_for_each_sample_and_epoch_by_the_seed(tree):
    def drawn(seed, epoch):
        data = RadioMapSeer(tree, "all", layout="mixed", seed=seed)
        data.set_epoch(epoch)
        return ["png" if scene.polygons is None else "polygon" for scene, _ in data]

    epochs = [drawn(seed=0, epoch=epoch) for epoch in range(4)]
    assert epochs == [drawn(seed=0, epoch=epoch) for epoch in range(4)]
    assert len({tuple(layouts) for layouts in epochs}) == 4 and drawn(seed=1, epoch=0) != epochs[0]
    kinds = sum(epochs, [])
    assert 9 < kinds.count("png") < 27  # of 36
    data = RadioMapSeer(tree, "all", layout="mixed")
    for k, kind in enumerate(epochs[0]):  # and each is what that layout alone would give
        (scene, radio_map), (expected, gain) = data[k], RadioMapSeer(tree, "all", layout=kind)[k]
        assert np.array_equal(scene.buildings, expected.buildings) and scene.raster_offset == expected.raster_offset
        assert np.array_equal(radio_map.gain_db, gain.gain_db)


def test_mixed_layouts_are_measured_at_the_same_places(tree):
    """Whichever layout a map happens to be read in first."""
    seen = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        data = RadioMapSeer(tree, "all", layout="mixed", measurements="edges", num_measurements=10)
        measured = {k: np.isfinite(data[k][0].measurements) for k in order}
        seen += [measured[k] for k in range(3)]
    assert all(np.array_equal(places, seen[0]) for places in seen) and seen[0].sum() == 10


@pytest.mark.parametrize("folder", ["png/buildings_complete", "polygon/buildings_complete"])
def test_mixed_layouts_need_both_folders(tree, tmp_path, folder):
    root = shutil.copytree(tree, tmp_path / "seer")
    shutil.rmtree(root / folder)
    with pytest.raises(ValueError, match=f"lacks {folder}/. Expected"):
        RadioMapSeer(root, "all", layout="mixed")


def test_a_scene_needs_no_folder_that_its_layout_does_not_use(tree, tmp_path):
    for name in ("antenna", "polygon/buildings_complete"):
        shutil.copytree(tree / name, tmp_path / name)
    (tmp_path / "manifest.json").write_text(
        json.dumps({"parameters": {"size": tiny_sets.SIDE, "metres_per_pixel": 2.0}})
    )
    scene = Scene.from_radiomapseer(tmp_path, 0, 1, layout="polygon")
    assert scene.shape == (64, 64) and scene.metres_per_pixel == 2.0
    with pytest.raises(ValueError, match="lacks png/buildings_complete/"):
        Scene.from_radiomapseer(tmp_path, 0, 1)


def test_the_transmitter_comes_from_its_picture_where_there_is_no_antenna_folder(tree, tmp_path):
    for name in ("png/antennas", "png/buildings_complete"):
        shutil.copytree(tree / name, tmp_path / name)
    for tx_id in range(3):
        assert read_scene(tmp_path, 1, tx_id).transmitter == read_scene(tree, 1, tx_id).transmitter
    with pytest.raises(ValueError, match="no transmitter 9"):
        read_scene(tree, 1, 9)


# Measurements --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["random", "edges", "vertices"])
@pytest.mark.parametrize("layout", ["png", "polygon"])
def test_measurements_lie_where_asked_and_stay_there(tree, how, layout):
    data = RadioMapSeer(tree, "all", measurements=how, num_measurements=10, layout=layout)
    (scene, radio_map), (other, _), (elsewhere, _) = data[0], data[1], data[3]
    measured = ~np.isnan(scene.measurements)
    assert 0 < measured.sum() <= 10 and not (measured & scene.buildings).any()
    assert np.array_equal(scene.measurements[measured], radio_map.gain_db[measured])
    assert np.array_equal(measured, ~np.isnan(other.measurements))  # another transmitter of the same map
    assert not np.array_equal(measured, ~np.isnan(elsewhere.measurements))
    data.set_epoch(5)
    assert np.array_equal(measured, ~np.isnan(data[0][0].measurements))
    rows, columns = np.nonzero(measured)
    padded = np.pad(scene.buildings, 2)
    if how == "edges":
        assert all(
            padded[r + 1 : r + 4, c + 2].any() or padded[r + 2, c + 1 : c + 4].any()
            for r, c in zip(rows, columns, strict=True)
        )
    if how == "vertices":
        corners = np.concatenate(tiny_sets.to_pixels(tiny_sets.outlines(0)))
        assert all(np.hypot(*(corners - (c, r)).T).min() < 3 for r, c in zip(rows, columns, strict=True))


def test_more_measurements_keep_the_earlier_ones(tree):
    few = ~np.isnan(RadioMapSeer(tree, "all", measurements="random", num_measurements=20)[0][0].measurements)
    many = ~np.isnan(RadioMapSeer(tree, "all", measurements="random", num_measurements=200)[0][0].measurements)
    assert few.sum() == 20 and many.sum() == 200 and (many | few).sum() == 200
    counts = [
        (
            ~np.isnan(RadioMapSeer(tree, "all", measurements="random", num_measurements=(5, 50))[k][0].measurements)
        ).sum()
        for k in range(9)
    ]
    assert min(counts) >= 5 and max(counts) <= 50 and len(set(counts)) > 1
    rows, _ = measurement_places(np.ones((9, 9), bool))
    assert len(rows) == 0


def test_measurement_masks_of_the_original(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "seer")
    with pytest.raises(ValueError, match="png/half_mask/"):
        RadioMapSeer(root, "all", measurements="mask")
    places = np.zeros((64, 64), np.uint8)
    places[3, 5:9] = 255
    for map_id in range(3):
        tiny_sets.save(root / f"png/half_mask/mask_{map_id}.png", places)
    scene, _ = RadioMapSeer(root, "all", measurements="mask")[0]
    assert ((~np.isnan(scene.measurements)) == (places > 0)).all()


# k2 ------------------------------------------------------------------------------------------------------------------


def test_k2_files_are_read_under_either_name(tree):
    assert np.allclose(RadioMapSeer(tree, "all", k2=True)[0][0].k2, 0.2)
    assert np.allclose(RadioMapSeer(tree, "all", k2=True, cars_in_map=True)[0][0].k2, 0.4)
    with pytest.raises(ValueError, match="no k2 maps"):
        RadioMapSeer(tree, "all", k2=True, simulation="IRT2")[0]
    with pytest.raises(ValueError, match="rand"):
        RadioMapSeer(tree, "all", k2=True, simulation="rand")


def test_k2_feature_follows_the_formula():
    rng = np.random.default_rng(1)
    gray = rng.integers(0, 256, (9, 11)).astype(np.uint8)
    feature = k2_feature(RadioMap.from_gray(gray), (4, 3))
    u = 10 ** ((23 - 30 - 147 + 100 * (gray / 255)) / 10)
    q = np.zeros((9, 11))
    for r in range(1, 8):
        for c in range(1, 10):
            around = (
                u[r - 1, c]
                + u[r + 1, c]
                + u[r, c - 1]
                + u[r, c + 1]
                - 4 * u[r, c]
                + (u[r, c] if (r, c) == (3, 4) else 0)
            )
            q[r, c] = min(around / u[r, c], 0)
    inner = q[1:-1, 1:-1]
    expected = np.full((9, 11), 255)
    expected[1:-1, 1:-1] = ((inner - inner.min()) / (inner.max() - inner.min()) * 255).astype(np.uint8)
    assert np.abs(feature * 255 - expected).max() <= 1  # a gray step at most: the map's dB are float32
    assert (np.abs(feature * 255 - expected) < 0.01).mean() > 0.95


def test_k2_of_a_flat_map_and_its_variant():
    flat = RadioMap.from_gray(np.full((8, 8), 100, np.uint8))
    assert (k2_feature(flat) == 1).all()
    source = k2_feature(RadioMap.from_gray(np.pad([[255]], 4).astype(np.uint8)), (4, 4), method="amplitude")
    assert 0 <= source.min() and source.max() <= 1 and source[4, 4] == source.max()
    with pytest.raises(ValueError, match="method"):
        k2_feature(flat, method="other")


# Errors --------------------------------------------------------------------------------------------------------------


def test_a_wrong_folder_is_answered_with_the_expected_tree(tmp_path, tree):
    with pytest.raises(ValueError, match="no such folder(.|\n)*png/buildings_complete/0.png"):
        RadioMapSeer(tmp_path / "nowhere")
    (tmp_path / "png").mkdir()
    with pytest.raises(ValueError, match="lacks png/buildings_complete/ and antenna/(.|\n)*gain/DPM/0_0.png"):
        RadioMapSeer(tmp_path)
    with pytest.raises(ValueError, match="lacks gain/IRT3/"):
        RadioMapSeer(tree, simulation="IRT3")


def test_numbers_may_be_a_list_one_number_or_text(tree):
    for maps in ([0, 2], (0, 2), "0,2", np.array([0, 2])):  # text is what the command line gives
        assert RadioMapSeer(tree, "all", maps=maps, transmitters=1).samples == [(0, 1), (2, 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": 5}, "missing must be 0 to 4"),
        ({"missing": True}, "missing must be 0 to 4"),
        ({"num_measurements": "x"}, r"num_measurements must be a number above 0, or \(low, high\); got 'x'"),
        ({"missing": 1, "version": 7}, "version must be 1 to 6"),
        ({"layout": "svg"}, "unknown layout"),
        ({"measurements": "roof"}, "unknown measurements"),
        ({"num_measurements": 0}, "num_measurements"),
        ({"irt2_max_weight": 1.5}, "irt2_max_weight"),
        ({"maps": [99]}, r"none of those asked for: maps \[99\]"),
        ({"maps": "0,x"}, "maps must be whole numbers, such as .*; got '0,x'"),
        ({"transmitters": [0.5]}, "transmitters must be whole numbers"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tree, options, message):
    with pytest.raises(ValueError, match=message) as error:
        RadioMapSeer(tree, "all", **options)
    assert "\n" not in str(error.value)


def test_gaps_are_logged_or_refused(tree, tmp_path, caplog):
    root = shutil.copytree(tree, tmp_path / "seer")
    (root / "gain/DPM/1_2.png").unlink()
    assert len(RadioMapSeer(root, "all", maps=[0, 1])) == 5
    assert "1 lack transmitters" in caplog.text
    with pytest.raises(ValueError, match="data check"):
        RadioMapSeer(root, "all", strict=True)
    (root / "png/buildings_complete/0.png").unlink()
    with pytest.raises(ValueError, match="0.png: no such file; `radiodiff data check"):
        RadioMapSeer(root, "all")[0]


def test_damaged_files_are_named(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "seer")
    path = root / "gain/DPM/0_0.png"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="0_0.png is damaged"):
        RadioMapSeer(root, "all")[0]
    (root / "antenna/0.json").write_text('{"x": 1')
    with pytest.raises(ValueError, match="0.json is damaged"):
        RadioMapSeer(root, "all")[1]
    tiny_sets.save(root / "gain/DPM/1_0.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="8 x 8 pixels, its buildings are 64 x 64"):
        RadioMapSeer(root, "all")[3]


# To tensors ----------------------------------------------------------------------------------------------------------


def test_collate_feeds_what_the_original_feeds(tree):
    batch = collate([RadioMapSeer(tree, "all")[k] for k in (0, 5)], ["buildings", "transmitter", "buildings"])
    assert batch["condition"].shape == (2, 3, 64, 64) and batch["target"].shape == (2, 1, 64, 64)
    for k, name in enumerate(("0_0", "1_2")):
        planes = [gray_of(tree, f"png/{p}.png") for p in (f"buildings_complete/{name[0]}", f"antennas/{name}")]
        expected = np.stack([planes[0], planes[1], planes[0]]).astype(np.float32) / 255 * 2 - 1
        assert np.array_equal(batch["condition"][k].numpy(), expected)
        target = gray_of(tree, f"gain/DPM/{name}.png").astype(np.float32) / 255 * 2 - 1
        assert np.abs(batch["target"][k, 0].numpy() - target).max() < 1e-6
    assert batch["name"] == ["0_0", "1_2"]


def test_collate_refuses_several_sizes(tree):
    scene, radio_map = RadioMapSeer(tree, "all")[0]
    small = scene.crop(0, 0, 32, 32), RadioMap(radio_map.gain_db[:32, :32])
    with pytest.raises(ValueError, match="several sizes"):
        collate([(scene, radio_map), small], ["buildings"])


def test_a_batch_is_the_scenes_own_planes_cached_or_not(tree, tmp_path):
    names = ["buildings", "log_distance", "transmitter", "log_distance"]
    cache = PlaneCache(tmp_path, ["log_distance"])
    for _ in range(2):  # computed and kept, then read
        pairs = [RadioMapSeer(tree, "all", cache=cache)[k] for k in (0, 5)]
        batch = collate(pairs, names)
        for (scene, radio_map), planes, target in zip(pairs, batch["condition"], batch["target"], strict=True):
            fresh = scene.replace()
            assert np.abs(planes.numpy() - np.stack([fresh.plane(n) for n in names])).max() < 1e-4
            assert np.array_equal(planes.numpy(), np.stack([scene.plane(n) for n in names]))
            assert np.array_equal(target[0].numpy(), radio_map.scale.to_unit(radio_map.gain_db))
            assert np.array_equal(make_planes(scene, radio_map, ["map", *names])[1:], planes.numpy())


def test_data_loader_workers_read_the_same(tree):
    from torch.utils.data import DataLoader

    data = pickle.loads(pickle.dumps(RadioMapSeer(tree, "all")))
    loader = DataLoader(data, 3, collate_fn=partial(collate, condition_channels=["buildings"]), num_workers=1)
    names = [name for batch in loader for name in batch["name"]]
    assert names == [f"{m}_{t}" for m, t in data.samples]


def test_plane_cache_keeps_channels_and_notices_other_scenes(tree, tmp_path):
    cache = PlaneCache(tmp_path / "planes", ["log_distance"])
    scene, _ = RadioMapSeer(tree, "all", cache=cache)[0]
    (kept,) = (tmp_path / "planes").rglob("*.int16")
    fresh = read_scene(tree, 0, 0).plane("log_distance")
    assert np.abs(scene.plane("log_distance") - fresh).max() < 1e-3
    np.full((64, 64), 16384, np.int16).tofile(kept)
    assert (RadioMapSeer(tree, "all", cache=cache)[0][0].plane("log_distance").round(3) == 0.5).all()
    assert (RadioMapSeer(tree, "all", cache=cache)[1][0].plane("log_distance").round(3) != 0.5).any()
    kept.write_bytes(kept.read_bytes()[:100])
    again = RadioMapSeer(tree, "all", cache=cache)[0][0].plane("log_distance")
    assert np.abs(again - fresh).max() < 1e-3
    moved = scene.replace(raster_offset=(0.3, -0.3))
    assert cache._key(moved) != cache._key(scene)
    assert cache._key(read_scene(tree, 0, 0, layout="polygon")) != cache._key(scene)
    crop = read_scene(tree, 0, 0).crop(8, 8, 16, 16)
    assert np.abs(cache.fill(crop).plane("log_distance") - fresh[8:24, 8:24]).max() < 1e-3


# PNG -----------------------------------------------------------------------------------------------------------------


def test_fast_png_reads_what_pillow_reads(tmp_path):
    rng = np.random.default_rng(0)
    smooth = (np.add.outer(np.arange(70), np.arange(33)) * 2 % 256).astype(np.uint8)
    for k, plane in enumerate((rng.integers(0, 256, (5, 9)).astype(np.uint8), smooth, np.zeros((3, 4), np.uint8))):
        Image.fromarray(plane).save(tmp_path / f"{k}.png")
        assert np.array_equal(read_gray(tmp_path / f"{k}.png"), plane)
    noise = rng.integers(0, 256, (7, 12)).astype(np.uint8)
    for plane in (smooth, noise, noise[:, :1], noise[:1]):  # even and odd numbers of rows: Paeth goes by twos
        for filter_kind in range(5):
            write_png(tmp_path / "f.png", plane, filter_kind)
            assert np.array_equal(np.asarray(Image.open(tmp_path / "f.png")), plane)
            assert np.array_equal(read_gray(tmp_path / "f.png"), plane)
    Image.fromarray(smooth).convert("RGB").save(tmp_path / "rgb.png")
    assert np.array_equal(read_gray(tmp_path / "rgb.png"), smooth)
    with pytest.raises(ValueError, match="no such file"):
        read_gray(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match="not an image"):
        read_gray(tmp_path / "text.png")


def write_png(path, plane, kind):
    """A PNG that uses one row filter throughout."""
    import struct
    import zlib

    height, width = plane.shape
    at = np.pad(plane.astype(int), ((1, 0), (1, 0)))
    left, up, corner = at[1:, :-1], at[:-1, 1:], at[:-1, :-1]
    p = left + up - corner
    to_left, to_up, to_corner = abs(p - left), abs(p - up), abs(p - corner)
    paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    guess = (0, left, up, (left + up) // 2, paeth)[kind]
    rows = np.concatenate([np.full((height, 1), kind), (plane.astype(int) - guess) % 256], axis=1).astype(np.uint8)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(rows.tobytes())
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", packed[:7]), chunk(b"IDAT", packed[7:]), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


# The real thing ------------------------------------------------------------------------------------------------------


@needs_samples
def test_real_samples():
    png = Scene.from_radiomapseer(SAMPLES, 0, 1)
    drawn = Scene.from_radiomapseer(SAMPLES, 0, 1, layout="polygon")
    assert png.transmitter == drawn.transmitter and len(drawn.polygons) == 60
    assert gray_of(SAMPLES, "png/antennas/0_1.png")[drawn.transmitter_pixel] == 255
    assert (drawn.buildings == (gray_of(SAMPLES, "gain/DPM/0_1.png") == 0)).all()
    data = RadioMapSeer(SAMPLES, "train", layout="polygon")
    assert [data.ids(k) for k in range(len(data))] == [(0, 0), (0, 1), (0, 10), (0, 14)]
    scene, radio_map = data[2]
    lit = radio_map.gain_db[scene.transmitter_pixel[0], scene.transmitter_pixel[1]]
    assert lit == radio_map.gain_db.max()

import json
import math
import shutil

import numpy as np
import pytest
import tiny_sets
from PIL import Image

from radiodiff_diffusers import channels_indoor
from radiodiff_diffusers.data.collate import collate
from radiodiff_diffusers.data.crops import crop_corner, crop_pair, pad_pair
from radiodiff_diffusers.data.icassp2025 import ICASSP2025, choose_samples, collate_view, read_scene
from radiodiff_diffusers.data.icassp2025_arrange import ArrangedIndoor, Arrangement, arrange
from radiodiff_diffusers.data.icassp2025_files import ICASSP2025Folder, Name
from radiodiff_diffusers.scene import GainScale, RadioMap, Scene


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return tiny_sets.make_icassp(tmp_path_factory.mktemp("icassp"))


def gray_of(path):
    return np.asarray(Image.open(path))


# Reading -------------------------------------------------------------------------------------------------------------


def test_it_yields_what_lies_on_disk(tree):
    data = ICASSP2025(tree, "all", task=1)
    assert [str(n) for n in data.names[:3]] == ["B1_Ant1_f1_S0", "B1_Ant1_f1_S1", "B2_Ant1_f1_S0"]
    scene, radio_map = data[1]
    width, height = tiny_sets.indoor_size(1)
    assert scene.shape == radio_map.shape == (height, width)
    assert scene.transmitter == tiny_sets.indoor_place(1, 1, width, height)
    assert scene.azimuth == 45 and scene.frequency_hz == 868e6 and scene.metres_per_pixel == 0.25
    picture = gray_of(tree / "Inputs/Task_1_ICASSP/B1_Ant1_f1_S1.png")
    assert np.array_equal(scene.reflectance, picture[..., 0]) and np.array_equal(scene.transmittance, picture[..., 1])
    assert scene.antenna_pattern is None
    assert radio_map.scale == GainScale.INDOOR
    assert np.allclose(-radio_map.gain_db, gray_of(tree / "Outputs/Task_1_ICASSP/B1_Ant1_f1_S1.png"))


def test_tasks_differ_in_antennas_and_frequencies(tree):
    sizes = [len(ICASSP2025(tree, "all", task=task)) for task in (1, 2, 3)]
    assert sizes == [6, 18, 36]
    data = ICASSP2025(tree, "all", task=3, antennas=[2], frequencies=[3], buildings=[2])
    assert [str(n) for n in data.names] == ["B2_Ant2_f3_S0", "B2_Ant2_f3_S1"]
    scene, _ = data[0]
    assert scene.frequency_hz == 3.5e9 and np.ptp(scene.antenna_pattern) > 35
    for hertz in ({2: 2.4e9}, {"2": "2.4e9"}):  # the second is what YAML makes of {2: 2.4e9} in a file
        assert ICASSP2025(tree, "all", task=2, frequencies=[2], hertz=hertz)[0][0].frequency_hz == 2.4e9
    assert read_scene(tree, "B1_Ant1_f2_S0", 2, frequency_hz=2.4e9).frequency_hz == 2.4e9


def test_an_unknown_frequency_says_what_to_pass(tree):
    from radiodiff_diffusers.data.icassp2025_files import ICASSP2025Folder, Name

    with pytest.raises(ValueError, match=r"unknown frequency f9: pass hertz=\{9: "):
        ICASSP2025Folder(tree).scene(Name(1, 1, 9, 0), 2)


def test_positions_in_either_order_and_wrong_ones_are_put_right(tmp_path, caplog):
    straight = tiny_sets.make_icassp(tmp_path / "a", tasks=(1,))
    swapped = tiny_sets.make_icassp(tmp_path / "b", tasks=(1,), swapped=True)
    for name in ("B1_Ant1_f1_S0", "B3_Ant1_f1_S1"):
        assert read_scene(straight, name).transmitter == read_scene(swapped, name).transmitter
    assert caplog.text == ""
    true = read_scene(straight, "B1_Ant1_f1_S0").transmitter
    (straight / "Positions/Positions_B1_Ant1_f1.csv").write_text("X,Y,Azimuth\n1,80,0\n5,5,0\n")
    found = read_scene(straight, "B1_Ant1_f1_S0").transmitter
    assert np.hypot(found[0] - true[0], found[1] - true[1]) < 1.5
    assert "does not fit the distance channel" in caplog.text


def test_a_transmitter_under_a_wall_is_read(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "set")
    path = root / "Inputs/Task_1_ICASSP/B1_Ant1_f1_S0.png"
    picture = gray_of(path).copy()
    picture[..., :2] = 8
    Image.fromarray(picture).save(path)
    scene = read_scene(root, "B1_Ant1_f1_S0")
    assert scene.buildings.sum() == scene.buildings.size - 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: shutil.rmtree(r / "Positions"), "lacks Positions/(.|\n)*Expected the ICASSP 2025 set"),
        (lambda r: shutil.rmtree(r / "Inputs/Task_1_ICASSP"), "lacks Inputs/Task_1_ICASSP/"),
        (lambda r: (r / "Positions/Positions_B1_Ant1_f1.csv").write_text("a,b\n1,2\n"), "columns X, Y, Azimuth"),
        (lambda r: (r / "Positions/Positions_B1_Ant1_f1.csv").write_text("X,Y,Azimuth\n"), "none for sample 0"),
        (lambda r: (r / "Radiation_Patterns/Ant1_Pattern.csv").write_text("1\n2\n"), "expected 360 gains"),
        (lambda r: (r / "Radiation_Patterns/Ant1_Pattern.csv").unlink(), "no such file"),
        (lambda r: (r / "Outputs/Task_1_ICASSP/B1_Ant1_f1_S0.png").write_bytes(b"x"), "not an image"),
        (lambda r: (r / "Inputs/Task_1_ICASSP/B1_Ant1_f1_S0.png").write_bytes(b"x"), "not an image"),
        (
            lambda r: tiny_sets.save(r / "Inputs/Task_1_ICASSP/B1_Ant1_f1_S0.png", np.zeros((9, 9), np.uint8)),
            "three channels",
        ),
        (
            lambda r: tiny_sets.save(r / "Outputs/Task_1_ICASSP/B1_Ant1_f1_S0.png", np.zeros((9, 9), np.uint8)),
            "its output is 9 x 9",
        ),
    ],
)
def test_what_is_wrong_is_named(tree, tmp_path, spoil, message):
    root = shutil.copytree(tree, tmp_path / "set")
    spoil(root)
    with pytest.raises(ValueError, match=message):
        ICASSP2025(root, "all")[0]


def test_wrong_options_are_refused(tree):
    with pytest.raises(ValueError, match="unknown task 4"):
        ICASSP2025(tree, task=4)
    with pytest.raises(ValueError, match="scheme"):
        ICASSP2025(tree, scheme="map")
    with pytest.raises(ValueError, match="no samples"):
        ICASSP2025(tree, "all", buildings=[9])
    with pytest.raises(ValueError, match="B#_Ant#_f#_S#"):
        read_scene(tree, "B1.png")


def test_building_details_say_how_large_the_maps_are(tree, tmp_path):
    width, height = tiny_sets.indoor_size(2)
    assert ICASSP2025Folder(tree).size(2) == (height, width) and ICASSP2025Folder(tree).size(9) is None
    root = shutil.copytree(tree, tmp_path / "set")
    tiny_sets.save(root / "Outputs/Task_1_ICASSP/B2_Ant1_f1_S0.png", np.full((9, 9), 50, np.uint8))
    with pytest.raises(ValueError, match=f"its output is 9 x 9 pixels, .*Building_Details says {width} x {height}"):
        ICASSP2025(root, "all")[2]
    for text in ("W,H\n", "a,b\n1,2\n", "W,H\n1.5,2\n", "W,H\n-3,2\n", "W,H\nx,2\n"):
        (root / "Building_Details/B2_Details.csv").write_text(text)
        with pytest.raises(ValueError, match="B2_Details.csv is damaged: expected columns W and H"):
            ICASSP2025Folder(root).size(2)


# Splits --------------------------------------------------------------------------------------------------------------


def full_names():
    return [Name(b, 1, 1, s) for b in range(1, 26) for s in range(50)]


def test_splits_by_building_share_no_building():
    parts = [choose_samples(full_names(), split) for split in ("train", "val", "test")]
    assert [len(p) for p in parts] == [1000, 100, 150]
    buildings = [{n.building for n in p} for p in parts]
    assert [len(b) for b in buildings] == [20, 2, 3] and not (
        buildings[0] & buildings[1] | buildings[1] & buildings[2]
    )
    assert set.union(*buildings) == set(range(1, 26))
    assert Name(26, 1, 1, 0) in choose_samples([*full_names(), Name(26, 1, 1, 0)], "test")


def test_splits_by_sample_have_the_originals_sizes():
    parts = [choose_samples(full_names(), split, "sample") for split in ("train", "val", "test")]
    assert [len(p) for p in parts] == [1000, 125, 125]
    assert sorted(sum(parts, [])) == full_names()
    assert parts == [choose_samples(full_names(), split, "sample") for split in ("train", "val", "test")]


# Channels ------------------------------------------------------------------------------------------------------------


def test_antenna_gain_follows_the_challenges_formula():
    rng = np.random.default_rng(0)
    pattern = rng.normal(size=360).astype(np.float32)
    for azimuth in (0.0, 30.0, 350.0):
        scene = Scene(np.zeros((20, 30), bool), transmitter=(11, 7), antenna_pattern=pattern, azimuth=azimuth)
        y, x = np.mgrid[:20, :30].astype(float)
        degrees = (-(180 / np.pi) * np.arctan2(7 - y, 11 - x) + 180 + azimuth) % 360
        sure = np.abs(degrees - np.rint(degrees)) > 1e-3  # on whole degrees, rounding decides
        sure[7, 11] = False
        gain = channels_indoor.antenna_gain_db(scene)
        assert np.array_equal(gain[sure], pattern[degrees.astype(int) % 360][sure]) and sure.sum() > 400
    beam = np.full(360, -40.0, np.float32)
    beam[:10], beam[-10:] = 0, 0
    right = channels_indoor.antenna_gain_db(Scene(np.zeros((21, 21), bool), (10, 10), antenna_pattern=beam))
    assert right[10, 20] == 0 and right[10, 0] == -40
    down = channels_indoor.antenna_gain_db(Scene(np.zeros((21, 21), bool), (10, 10), antenna_pattern=beam, azimuth=90))
    assert down[20, 10] == 0 and down[0, 10] == -40


def test_free_space_loss_is_friis():
    scene = Scene(np.zeros((9, 41), bool), transmitter=(0, 4), metres_per_pixel=0.25, frequency_hz=868e6)
    loss = channels_indoor.free_space_loss_db(scene)
    assert loss[4, 40] == pytest.approx(20 * math.log10(10) + 20 * math.log10(868) - 27.55, abs=1e-4)
    assert loss[4, 0] == pytest.approx(20 * math.log10(0.125) + 20 * math.log10(868) - 27.55, abs=1e-4)
    plane = scene.plane("free_space_loss")
    assert np.allclose((plane + 1) * 127.5, np.maximum(loss, 0), atol=1e-3)


def test_wall_loss_counts_walls_that_are_left_behind():
    walls = np.zeros((21, 60), np.float32)
    walls[:, 10:13], walls[:, 30] = 5, 7
    scene = Scene(walls > 0, transmitter=(3, 10), transmittance=walls)
    loss = channels_indoor.wall_loss_db(scene)
    assert (loss[:, :10] == 0).all() and (loss[10, 10:13] == 0).all()
    assert (loss[:, 15:30] == 5).all() and (loss[:, 31:] == 12).all()
    capped = channels_indoor.wall_loss_db(scene, most_walls=1)
    assert (capped[:, 31:] == 5).all()
    many = np.zeros((9, 60), np.float32)
    many[:, 2::4] = 3
    assert channels_indoor.wall_loss_db(Scene(many > 0, (0, 4), transmittance=many)).max() == 30


def test_wall_loss_is_the_same_seen_from_the_other_end():
    rng = np.random.default_rng(4)
    walls = np.where(rng.random((30, 30)) < 0.1, 6.0, 0.0).astype(np.float32)
    walls[3, 4] = walls[22, 26] = 0
    there = channels_indoor.wall_loss_db(Scene(np.zeros((30, 30), bool), (4, 3), transmittance=walls), 99)
    back = channels_indoor.wall_loss_db(Scene(np.zeros((30, 30), bool), (26, 22), transmittance=walls), 99)
    assert there[22, 26] == back[3, 4] > 0


def test_indoor_channels_and_views(tree):
    data = ICASSP2025(tree, "all", task=3, antennas=[2], crop=48)
    names = ["reflectance", "transmittance", "distance", "antenna_gain", "wall_loss", "free_space_loss"]
    batch = collate([data[0], data[3]], names)
    assert batch["condition"].shape == (2, 6, 48, 48)
    scene, radio_map = data[0]
    assert np.allclose(batch["condition"][0, 0], scene.reflectance / 16 - 1)
    assert np.allclose(batch["target"][0, 0], -radio_map.gain_db * 2 / 255 - 1, atol=1e-6)
    assert collate_view([data[0]], "building").shape == (1, 2, 48, 48)
    assert np.allclose(collate_view([data[0]], "antenna")[0, 0], scene.plane("free_space_loss"))
    assert np.allclose(collate_view([data[0]], "radio")[0, 0], batch["target"][0, 0])
    with pytest.raises(ValueError, match="unknown view"):
        collate_view([data[0]], "roof")
    with pytest.raises(ValueError, match="needs the scene's reflectance"):
        Scene(np.zeros((9, 9), bool), (1, 1)).plane("reflectance")


# Crops ---------------------------------------------------------------------------------------------------------------


def test_drawn_crops_keep_the_margin_and_differ():
    rng = np.random.default_rng(0)
    corners = {crop_corner((132, 400), (200, 66), (96, 96), 10, rng) for _ in range(300)}
    for x, y in corners:
        assert 0 <= x <= 304 and 0 <= y <= 36
        assert x + 10 <= 200 <= x + 95 - 10 and y + 10 <= 66 <= y + 95 - 10
    xs = {x for x, _ in corners}
    assert min(xs) == 200 - 85 and max(xs) == 190  # every place that the margin allows
    assert crop_corner((132, 400), (200, 66), (96, 96)) == (152, 18)


def test_near_the_border_the_margin_is_what_the_map_gives():
    rng = np.random.default_rng(1)
    for transmitter, expected in (((3, 60), 0), ((397, 60), 304)):
        assert {crop_corner((132, 400), transmitter, (96, 96), 10, rng)[0] for _ in range(50)} == {expected}
    with pytest.raises(ValueError, match="does not fit"):
        crop_corner((50, 400), (20, 20), (96, 96))
    with pytest.raises(ValueError, match="outside the map"):
        crop_corner((132, 400), (500, 20), (96, 96))


def test_small_maps_are_padded_and_crops_see_the_whole():
    walls = np.zeros((40, 120), np.float32)
    walls[:, 60] = 9
    gain = np.full((40, 120), -70, np.float32)
    scene = Scene(walls > 0, transmitter=(100, 20), transmittance=walls, reflectance=walls)
    padded, padded_map = pad_pair(scene, RadioMap(gain, GainScale.INDOOR), (64, 64))
    assert padded.shape == (64, 120) and (padded_map.gain_db[40:] == -160).all() and not padded.buildings[40:].any()
    cut, cut_map = crop_pair(scene, RadioMap(gain, GainScale.INDOOR), 64)
    assert cut.shape == cut_map.shape == (64, 64) and cut.transmitter == (44, 20)
    assert (cut.plane("wall_loss")[:40, :4] > -1).all()  # behind the wall


def test_training_crops_change_with_the_epoch_and_validation_crops_do_not(tree):
    train = ICASSP2025(tree, "all", crop=32, random_crop=True)
    seen = set()
    for epoch in range(6):
        train.set_epoch(epoch)
        scene, radio_map = train[0]
        assert scene.shape == radio_map.shape == (32, 32) and scene.transmitter_pixel is not None
        assert train[0][0].transmitter == scene.transmitter
        seen.add(scene.transmitter)
    assert len(seen) > 2
    val = ICASSP2025(tree, "all", crop=32)
    first = val[0][0].transmitter
    val.set_epoch(3)
    assert val[0][0].transmitter == first


# Arranging -----------------------------------------------------------------------------------------------------------


def test_arranged_layout(tree, tmp_path):
    out = tmp_path / "arranged"
    counts = arrange(tree, out, Arrangement(task=3, size=64), workers=2)
    assert counts["failed"] == [] and sum(counts[s] for s in ("train", "val", "test")) == 36
    manifest = json.loads((out / "manifest.json").read_text())
    name = "B1_Ant2_f2_S1"
    about = manifest["samples"][name]
    image = gray_of(out / about["split"] / "image" / f"{name}.png")
    edge = gray_of(out / about["split"] / "edge" / f"{name}.png")
    assert image.shape == (64, 64, 3) and edge.shape == (64, 64)
    left, top, _, _ = about["box"]
    width, height = about["valid"]
    whole = gray_of(tree / f"Outputs/Task_3_ICASSP/{name}.png")
    assert np.array_equal(edge[:height, :width], whole[top : top + 64, left : left + 64])
    assert (edge[height:] == 160).all() and (edge[:, width:] == 160).all()
    source = ICASSP2025Folder(tree).scene(Name.parse(name), 3)
    loss = np.rint(channels_indoor.free_space_loss_db(source)).clip(0, 255)
    assert np.array_equal(image[:height, :width, 2], loss[top : top + 64, left : left + 64])
    data = ArrangedIndoor(out, "all")
    scene, radio_map = next(pair for pair in (data[k] for k in range(len(data))) if pair[0].name == name)
    assert scene.transmitter == (source.transmitter[0] - left, source.transmitter[1] - top)
    assert scene.azimuth == source.azimuth and scene.frequency_hz == 1.8e9
    assert np.allclose(scene.antenna_pattern, source.antenna_pattern)
    assert np.allclose(radio_map.gray, edge)


def rename_band(root, old, new):
    """The files of one frequency number under another: bands that the set's documentation does not know."""
    for path in [p for p in root.rglob(f"*_f{old}[_.]*") if p.is_file()]:
        path.rename(path.with_name(path.name.replace(f"_f{old}", f"_f{new}")))


def test_other_bands_and_chosen_numbers_are_arranged(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "set")
    rename_band(root, 3, 4)
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"unknown frequency f4: pass hertz=\{4: .*--hertz 4=2.4e9"):
        arrange(root, out, Arrangement(task=2, size=48))
    assert not out.exists()
    chosen = Arrangement(task=2, size=48, frequencies=[4, 2], buildings=(1, 2), hertz={4: 5.2e9, "f2": "2.4e9"})
    assert arrange(root, out, chosen, workers=2)["failed"] == []
    data = ArrangedIndoor(out, "all")
    found = {name: data[k][0] for k, (_, name) in enumerate(data.items)}
    assert sorted({(n.building, n.frequency) for n in found}) == [(1, 2), (1, 4), (2, 2), (2, 4)]
    assert {scene.frequency_hz for n, scene in found.items() if n.frequency == 4} == {5.2e9}
    assert {scene.frequency_hz for n, scene in found.items() if n.frequency == 2} == {2.4e9}
    scene = ICASSP2025Folder(root).scene(Name(1, 1, 4, 0), 2, 5.2e9)
    split, name = next(item for item in data.items if item[1] == Name(1, 1, 4, 0))
    image = gray_of(out / split / "image" / f"{name}.png")
    row, column = found[name].transmitter_pixel
    assert image[row, column, 2] == np.rint(channels_indoor.free_space_loss_db(scene)[scene.transmitter_pixel])
    arrange(root, out, Arrangement(task=2, size=48, frequencies=[2, 4], buildings=[1, 2], hertz={2: 2.4e9, 4: 5.2e9}))
    with pytest.raises(ValueError, match="arranged with hertz"):
        arrange(root, out, Arrangement(task=2, size=48, frequencies=[2, 4], buildings=[1, 2], hertz={4: 6e9}))
    with pytest.raises(ValueError, match=r"task 2 has no samples of frequencies \[9\]"):
        arrange(root, tmp_path / "none", Arrangement(task=2, frequencies=[9]))


def test_a_split_does_not_change_with_what_is_chosen(tree, tmp_path):
    arrange(tree, tmp_path / "all", Arrangement(task=3, size=16, scheme="sample"), workers=2)
    arrange(tree, tmp_path / "few", Arrangement(task=3, size=16, scheme="sample", antennas=[2]), workers=2)
    whole, few = (json.loads((tmp_path / x / "manifest.json").read_text())["samples"] for x in ("all", "few"))
    assert len(few) == 18 and all(whole[name]["split"] == about["split"] for name, about in few.items())


@pytest.mark.parametrize("hertz", [{2: "fast"}, {"two": 2.4e9}, {2: -1}, {0: 1e9}, {2: 2.4}, 2.4e9])
def test_wrong_bands_get_one_line(tree, hertz):
    with pytest.raises(ValueError, match="such as .*2: 2.4e9") as caught:
        ICASSP2025(tree, "all", hertz=hertz)
    assert "\n" not in str(caught.value)


def test_arranging_again_changes_nothing_and_other_settings_are_refused(tree, tmp_path):
    out = tmp_path / "arranged"
    arrange(tree, out, Arrangement(size=48))
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    victim = next(iter(before))
    victim.unlink()
    arrange(tree, out, Arrangement(size=48))
    after = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    assert set(after) == set(before) and {p for p in before if before[p] != after[p]} == {victim}
    with pytest.raises(ValueError, match="arranged with size 48, not 64"):
        arrange(tree, out, Arrangement(size=64))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        arrange(tree, tmp_path / "full")


def test_a_broken_sample_does_not_stop_the_others(tree, tmp_path):
    root = shutil.copytree(tree, tmp_path / "set")
    (root / "Outputs/Task_1_ICASSP/B2_Ant1_f1_S0.png").unlink()
    counts = arrange(root, tmp_path / "out", Arrangement(size=48))
    assert len(counts["failed"]) == 1 and "B2_Ant1_f1_S0" in counts["failed"][0]
    assert sum(counts[s] for s in ("train", "val", "test")) == 5


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_multi_condition_layout(tree, tmp_path, fit):
    out = tmp_path / "multi"
    arrange(tree, out, Arrangement("multi-condition", size=80, fit=fit, scheme="sample"))
    data = ArrangedIndoor(out, "train")
    assert len(data) == 6 and data.layout == "multi-condition"
    scene, radio_map = data[0]
    folder = out / "train"
    first = gray_of(folder / "condition1/B1_Ant1_f1_S0.png")
    second = gray_of(folder / "condition2/B1_Ant1_f1_S0.png")
    assert first.shape == (80, 80, 3) and not first[..., 2].any() and second.shape == (80, 80)
    assert np.array_equal(scene.reflectance, first[..., 0])
    row, column = scene.transmitter_pixel
    assert second[row, column] <= 1 and second.max() > 4
    batch = collate([data[0], data[1]], ["reflectance", "transmittance", "distance"])
    assert batch["condition"].shape == (2, 3, 80, 80)
    assert np.allclose(radio_map.gray, gray_of(folder / "target/B1_Ant1_f1_S0.png"))


def test_folders_of_the_original_suite_are_read_without_a_manifest(tree, tmp_path):
    out = tmp_path / "arranged"
    arrange(tree, out, Arrangement(size=48))
    known = {ArrangedIndoor(out, "all")[k][0].name: ArrangedIndoor(out, "all")[k][0].transmitter for k in range(6)}
    (out / "manifest.json").unlink()
    for k in range(6):
        scene, _ = ArrangedIndoor(out, "all")[k]
        assert np.hypot(*np.subtract(scene.transmitter, known[scene.name])) < 3
    with pytest.raises(ValueError, match="not an arranged indoor set"):
        ArrangedIndoor(tree)
    with pytest.raises(ValueError, match="unknown layout"):
        Arrangement("flat")

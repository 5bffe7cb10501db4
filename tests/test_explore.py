"""Data set pages: the numbers of a scan worked out by hand, damage and gaps listed, every picture drawn."""

import argparse
import json
import re

import numpy as np
import pytest
import tiny_sets
from PIL import Image

from radiodiff_diffusers.commands import data_explore as command
from radiodiff_diffusers.reports import explore_icassp, radiomapseer_figures
from radiodiff_diffusers.reports.explore import explore, find_kind
from radiodiff_diffusers.reports.radiomapseer_scan import DISTANCE_STEP, column, read_tree, scan

SIDE = 64


def save(path, plane):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(plane, np.uint8)).save(path)


@pytest.fixture
def maps(tmp_path):
    """Three maps of two transmitters: one house of 20 x 10 pixels, one car, gain falling from left to right."""
    root = tmp_path / "maps"
    buildings = np.zeros((SIDE, SIDE))
    buildings[20:30, 10:30] = 255
    cars = np.zeros((SIDE, SIDE))
    cars[40:42, 40:44] = 255
    gain = np.where(buildings > 0, 0, np.linspace(200, 20, SIDE)[None].repeat(SIDE, 0))
    for m in range(3):
        save(root / f"png/buildings_complete/{m}.png", buildings)
        save(root / f"png/cars/{m}.png", cars)
        for name, text in (
            ("polygon/buildings_complete", [[[10, 34], [30, 34], [30, 44], [10, 44], [10, 34]]]),
            ("antenna", [[5, SIDE - 1 - 7], [12, SIDE - 1 - 21]]),
        ):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{m}.json").write_text(json.dumps(text))
        for t in range(2):
            save(root / f"gain/DPM/{m}_{t}.png", gain)
            save(root / f"gain/IRT4/{m}_{t}.png", np.where(gain > 0, gain + 10, 0))
            save(root / f"gain/carsDPM/{m}_{t}.png", np.where(gain > 0, gain - 3, 0))
    return root


def test_the_scan_counts_what_is_there(maps):
    tree = read_tree(maps)
    total = scan(tree, workers=1, progress=False)
    assert tree.maps == [0, 1, 2] and tree.num_gains == 18 and tree.missing == {} and total.damaged == []
    assert total.images == 18 + 6 and total.shapes == {(SIDE, SIDE): 21}
    assert column(total, "building_share") == pytest.approx([200 / SIDE**2] * 3)
    assert total.areas == [200.0] * 3 and total.vertices == [4] * 3 and total.perimeters == [60.0] * 3
    assert total.car_areas == [8.0] * 3 and column(total, "cars").tolist() == [1, 1, 1]
    # The second transmitter stands at (12, 21): two pixels into the wall.
    assert total.transmitters[1].tolist() == [12, 21] and total.transmitter_depth[1] == pytest.approx(2, abs=0.1)
    assert total.transmitter_depth[0] == 0
    gain = np.asarray(Image.open(maps / "gain/DPM/0_0.png"))
    assert (total.histograms["DPM"] == 6 * np.bincount(gain.ravel(), minlength=256)).all()
    heard = gain[np.asarray(Image.open(maps / "png/buildings_complete/0.png")) == 0] > 51.5
    assert total.coverage["DPM"] == pytest.approx([heard.mean()] * 6)


def test_simulations_are_compared_in_db(maps):
    rows = {row[0]: row for row in radiomapseer_figures.difference_rows(scan(read_tree(maps), 1, False))}
    db = 99.16 / 255
    assert rows["IRT4"][1] == rows["carsDPM"][1] == "DPM"
    assert rows["IRT4"][2] == 6 * (SIDE**2 - 200)
    assert rows["IRT4"][3:] == pytest.approx([10 * db] * 4, rel=1e-5)
    assert rows["carsDPM"][3] == pytest.approx(-3 * db, rel=1e-5) and rows["carsDPM"][4] == pytest.approx(
        3 * db, rel=1e-5
    )


def test_gain_over_distance_counts_every_pixel_at_its_distance(maps):
    counts = scan(read_tree(maps), 1, False).over_distance["DPM"]
    assert counts.sum() == 6 * SIDE**2
    y, x = np.mgrid[:SIDE, :SIDE]
    within = sum((np.hypot(x - a, y - b) < DISTANCE_STEP).sum() for a, b in ((5, 7), (12, 21)))
    assert counts[0].sum() == 3 * within


def test_two_processes_find_what_one_does(maps):
    one, two = scan(read_tree(maps), 1, False), scan(read_tree(maps), 2, False)
    assert all((one.histograms[name] == two.histograms[name]).all() for name in one.histograms)
    assert one.row == two.row and (one.transmitters == two.transmitters).all()


def test_the_page_has_all_nine_figures(maps):
    markdown, page = explore(maps, workers=1, progress=False)
    assert len(list((maps / "explore" / "figures").glob("*.png"))) == 9
    text = page.read_text()
    assert "3 maps, 6 transmitters, 18 gain maps" in text and "Every file could be read." in text
    assert text.count('src="data:image/png;base64,') == 9 and not re.findall(r'(?:src|href)="(?!data:|#)', text)
    # The page's own pictures are no part of the data set when it is made again.
    assert "explore" not in read_tree(maps).counts
    assert explore(maps, workers=1, progress=False) == (markdown, page)


def test_edge_maps_beside_the_gain_maps_are_no_simulation(maps):
    from radiodiff_diffusers.data.edges import make_edges

    before = read_tree(maps)
    make_edges(maps / "gain/DPM", maps / "gain/DPM_edges", workers=1, progress=False)
    assert read_tree(maps) == before


def test_damaged_and_missing_files_are_listed_and_not_fatal(maps):
    (maps / "gain/DPM/1_0.png").write_bytes((maps / "gain/DPM/1_0.png").read_bytes()[:80])
    (maps / "gain/DPM/2_1.png").unlink()
    (maps / "gain/IRT4/0_1.png").write_text("not a picture")
    (maps / "antenna/2.json").write_text("[[1, 2")
    (maps / "polygon/buildings_complete/0.json").write_text('{"a": 1}')
    (maps / "png/buildings_complete/1.png").unlink()
    total = scan(read_tree(maps), 1, False)
    assert {text.split(":")[0] for text in total.damaged} == {
        "gain/DPM/1_0.png", "gain/IRT4/0_1.png", "antenna/2.json", "polygon/buildings_complete/0.json",
    }  # fmt: skip
    assert read_tree(maps).missing == {"gain/DPM": ["2_1.png"], "png/buildings_complete": ["1.png"]}
    text = explore(maps, workers=1, progress=False)[1].read_text()
    assert "4 files could not be read" in text and "2 files missing" in text and "gain/IRT4/0_1.png" in text


def test_a_set_with_only_gain_maps_says_what_it_lacks(maps, tmp_path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(maps / "gain" / "DPM", bare / "gain" / "DPM")
    text = explore(bare, workers=1, progress=False)[1].read_text()
    for reason in (
        "no antenna/ folder",
        "no polygon/buildings_complete folder",
        "only one simulation",
        "There are no cars",
    ):
        assert reason in text


# Indoor ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def indoor(tmp_path):
    root = tmp_path / "indoor"
    rng = np.random.default_rng(0)
    for b, (height, width) in ((1, (40, 60)), (2, (50, 30))):
        rgb = np.zeros((height, width, 3))
        rgb[10:12, 5:25] = (9, 6, 0)
        for antenna in (1, 2):
            lines = ["id,Y,X,Azimuth"]
            for s in range(2):
                place = (float(rng.integers(5, width - 5)), float(rng.integers(15, height - 5)), 90.0 * (antenna - 1))
                lines.append(f"{s},{place[1]},{place[0]},{place[2]}")
                loss = explore_icassp.free_space_loss((height, width), place, 868e6, None) + 7
                save(root / f"Inputs/Task_1_ICASSP/B{b}_Ant{antenna}_f1_S{s}.png", rgb)
                save(root / f"Outputs/Task_1_ICASSP/B{b}_Ant{antenna}_f1_S{s}.png", loss)
            (root / "Positions").mkdir(exist_ok=True)
            (root / f"Positions/Positions_B{b}_Ant{antenna}_f1.csv").write_text("\n".join(lines))
    (root / "Radiation_Patterns").mkdir()
    for antenna, gain in ((1, np.zeros(360)), (2, -10 * (1 - np.cos(np.radians(np.arange(360)))))):
        text = "Gain\n" + "\n".join(f"{v:.4f}" for v in gain)
        (root / f"Radiation_Patterns/Ant{antenna}_Pattern.csv").write_text(text)
    return root


def test_the_indoor_page(indoor):
    (indoor / "Outputs/Task_1_ICASSP/B1_Ant1_f1_S0.png").write_bytes(b"x")
    (indoor / "Inputs/Task_1_ICASSP/B2_Ant1_f1_S0.png").unlink()
    (indoor / "Radiation_Patterns/Ant2_Pattern.csv").write_text("1\n2\n")
    text = explore(indoor, workers=1, progress=False)[1].read_text()
    assert len(list((indoor / "explore" / "figures").glob("*.png"))) == 7
    assert "8 samples" in text and "2 files could not be read" in text
    assert "1 sample without an input picture: B2_Ant1_f1_S0" in text
    assert "4 samples without an antenna pattern" in text
    assert "2 gains where 360 were expected" in text


def test_positions_given_as_row_and_column_are_turned(tmp_path):
    """The distance channel tells which is which; the truth is free space, so nothing is left over when it is right."""
    left_over = []
    for swapped in (False, True):
        root = tiny_sets.make_icassp(tmp_path / str(swapped), buildings=(1,), tasks=(1,), swapped=swapped)
        sample = explore_icassp.find_samples(root)[0]
        place = explore_icassp.read_positions(root, [])[(1, 1, 1)][0]
        counts = explore_icassp.scan_sample(explore_icassp.Job(root, sample, place, None)).free_against_true
        free, true = np.mgrid[:100, :128] * 2
        left_over.append((counts * np.abs(true - free)).sum() / counts.sum())
    assert left_over[0] == left_over[1] < 3


def test_free_space_loss_and_where_the_antenna_looks():
    """1 m off at 868 MHz: 20 log10(868) - 27.55 dB; an antenna at azimuth 0 looks along +x, 90 along +y (down)."""
    pattern = -10 * (1 - np.cos(np.radians(np.arange(360))))
    assert explore_icassp.free_space_loss((9, 9), (4, 4, 0), 868e6, None)[4, 8] == pytest.approx(31.22, abs=0.01)
    for azimuth, best in ((0, (4, 8)), (90, (8, 4)), (180, (4, 0)), (270, (0, 4))):
        loss = explore_icassp.free_space_loss((9, 9), (4, 4, azimuth), 868e6, pattern)
        assert loss[best] == min(loss[4, 8], loss[0, 4], loss[4, 0], loss[8, 4])


# Spectrograms ------------------------------------------------------------------------------------------------------


def test_the_spectrogram_page(tmp_path):
    rng = np.random.default_rng(0)
    for label, count in (("ID_1", 2), ("ID_2", 4), ("ID_10", 4)):
        for i in range(count):
            save(tmp_path / label / f"{i}.png", rng.integers(0, 255, (48, 40, 3)))
    (tmp_path / "ID_2" / "3.png").write_bytes(b"")
    text = explore(tmp_path, workers=1, progress=False)[1].read_text()
    assert "9 pictures of 3 classes" in text and "1 file could not be read" in text
    assert "Unbalanced: 2 pictures of ID_1, 4 of ID_10" in text
    assert len(list((tmp_path / "explore" / "figures").glob("*.png"))) == 5


def test_jet_pictures_are_read_back_as_levels(tmp_path):
    from radiodiff_diffusers.engines.gait import JET
    from radiodiff_diffusers.reports.explore_spectrograms import read_levels

    levels = np.add.outer(np.arange(0, 256, 4), np.zeros(40)).astype(np.uint8)
    save(tmp_path / "jet.png", JET[levels])
    save(tmp_path / "gray.png", np.repeat(levels[..., None], 3, -1))
    plane, jet = read_levels(tmp_path / "jet.png")
    assert jet and np.abs(plane.astype(int) - levels).max() <= 3
    plane, jet = read_levels(tmp_path / "gray.png")
    assert not jet and (plane == levels).all()
    save(tmp_path / "noise.png", np.random.default_rng(0).integers(0, 255, (48, 40, 3)))
    assert not read_levels(tmp_path / "noise.png")[1], "colours of another scale are not taken for jet"


# Asking wrongly ----------------------------------------------------------------------------------------------------


def test_the_kind_is_found_out(maps, indoor):
    assert find_kind(maps) == "radiomapseer" and find_kind(indoor) == "icassp2025"


def test_the_command_and_its_errors(maps, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "page"
    assert command.run(parser.parse_args([str(maps), "-o", str(out), "--workers", "1"])) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html") and not (maps / "explore").exists()
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "empty", "holds no data set known here"),
    ):
        with pytest.raises(ValueError, match=message) as failure:
            command.run(parser.parse_args([str(folder)]))
        assert "\n" not in str(failure.value)
    with pytest.raises(ValueError, match="not laid out like RadioMapSeer"):
        explore(tmp_path / "empty", kind="radiomapseer")

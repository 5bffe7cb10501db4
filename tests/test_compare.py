"""Comparisons: the scores only a comparison has, pairing, what is left over or broken, files written, predictors."""

import argparse
import csv
import re

import numpy as np
import pytest
from PIL import Image

from radiodiff_diffusers.commands import compare as command
from radiodiff_diffusers.evaluation.metrics import map_metrics
from radiodiff_diffusers.hub_names import could_be_on_the_hub
from radiodiff_diffusers.reports import compare as module
from radiodiff_diffusers.reports.compare import brightest_point, compare, compare_predictor, pair_by_name, pair_scores
from radiodiff_diffusers.scene import GainScale, RadioMap


def gain(seed=0, side=40):
    """A bright spot whose place depends on the seed, over a gentle slope."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    spot = rng.integers(8, side - 8, 2)
    return np.rint(60 + x + 120 * np.exp(-((y - spot[0]) ** 2 + (x - spot[1]) ** 2) / 30)).astype(np.uint8)


def save(path, plane):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(plane).astype(np.uint8)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Six pairs, one prediction and one truth more, one broken file; predictions are 5 gray levels too bright."""
    rng = np.random.default_rng(1)
    for m in range(6):
        truth = gain(m)
        save(tmp_path / "truth" / f"{m}_0.png", truth)
        save(tmp_path / "made" / f"{m}_0.png", np.clip(truth + 5.0 + rng.normal(0, m + 1, truth.shape), 0, 255))
    save(tmp_path / "truth" / "7_0.png", gain(7))
    save(tmp_path / "made" / "8_0.png", gain(8))
    save(tmp_path / "truth" / "9_0.png", gain(9))
    (tmp_path / "made" / "9_0.png").write_bytes(b"no picture")
    return tmp_path / "made", tmp_path / "truth"


def test_scores_of_a_pair_worked_out_by_hand():
    truth, prediction = np.full((20, 20), 102.0), np.full((20, 20), 153.0)
    truth[4, 6], prediction[7, 10] = 204, 204
    scores = pair_scores(*(RadioMap.from_gray(plane) for plane in (prediction, truth)), metres_per_pixel=2.0)
    assert scores["brightest_distance_m"] == pytest.approx(10)  # 3 and 4 pixels of two metres
    assert scores["bias_db"] == pytest.approx(((prediction - truth) / 255).mean() * 99.16, rel=1e-4)
    assert scores["relative_error"] == pytest.approx((np.abs(prediction - truth) / truth).mean(), rel=1e-4)
    # One bright pixel on a plane bends by its height: the prediction's is half as high.
    assert scores["sharpness_ratio"] == pytest.approx(0.25, rel=1e-3)
    for name, value in map_metrics(prediction, truth).items():
        assert scores[name] == pytest.approx(value, rel=1e-4)


def test_equal_maps():
    scores = pair_scores(*(RadioMap.from_gray(gain()) for _ in range(2)))
    assert scores["sharpness_ratio"] == 1 and scores["relative_error"] == 0 and scores["brightest_distance_m"] == 0


def test_the_brightest_point_of_several_is_their_middle():
    plane = np.zeros((9, 9))
    plane[2, 3:6] = 1
    assert brightest_point(plane) == (2, 4)


def test_blur_is_less_sharp():
    from scipy.ndimage import gaussian_filter

    truth = gain().astype(float)
    scores = pair_scores(RadioMap.from_gray(gaussian_filter(truth, 2)), RadioMap.from_gray(truth))
    assert scores["sharpness_ratio"] < 0.5


def test_pairs_by_path_then_by_name(tmp_path):
    path = tmp_path
    by_path = pair_by_name({"a/1": path, "a/2": path}, {"a/2": path, "a/3": path})
    assert list(by_path) == ["a/2"]
    assert list(pair_by_name({"DPM/10_1": path, "DPM/9_1": path}, {"9_1": path, "10_1": path})) == ["9_1", "10_1"]
    assert pair_by_name({"a/1": path, "b/1": path}, {"1": path}) == {}, "a name that stands twice pairs with nothing"


def test_two_folders(folders):
    result = compare(*folders, workers=1, progress=False)
    assert [row["name"] for row in result.rows] == [f"{m}_0" for m in range(6)]
    assert result.unpaired_predictions == ["8_0"] and result.unpaired_truths == ["7_0"]
    assert [name for name, _ in result.failures] == ["9_0"]
    expected = [map_metrics(*(np.asarray(Image.open(f / f"{m}_0.png")) for f in folders))["rmse"] for m in range(6)]
    assert [row["rmse"] for row in result.rows] == pytest.approx(expected, rel=1e-5)
    assert result.summary["rmse"]["mean"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert result.summary["bias_db"]["mean"] == pytest.approx(5 * 99.16 / 255, abs=0.1)
    assert result.error_count == 6 and result.joint.sum() == 6 * 40 * 40
    two = compare(*folders, workers=2, progress=False)
    assert two.rows == result.rows and (two.joint == result.joint).all()


def test_what_is_written(folders, tmp_path):
    result = compare(*folders, tmp_path / "out", workers=1, progress=False)
    with (tmp_path / "out" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and float(rows[2]["ssim"]) == pytest.approx(result.rows[2]["ssim"], abs=1e-5)
    with (tmp_path / "out" / "summary.csv").open() as file:
        summary = {row["score"]: row for row in csv.DictReader(file)}
    assert float(summary["psnr"]["mean"]) == pytest.approx(result.summary["psnr"]["mean"], abs=1e-3)
    text = result.page.read_text()
    assert text.count("data:image/png;base64,") == 5 and not re.findall(r'(?:src|href)="(?!data:|#)', text)
    for part in (
        "6 pairs",
        "1 prediction without truth: 8_0",
        "1 truth without prediction: 7_0",
        "1 pair could not",
    ):
        assert part in text
    assert "too strong by 1.9 dB" in text


def test_npz_tiff_and_other_scales(tmp_path):
    indoor = RadioMap.from_gray(gain(), GainScale.INDOOR, metres_per_pixel=0.25)
    for folder, change in (("a", 3.0), ("b", 0.0)):
        RadioMap(indoor.gain_db - change, GainScale.INDOOR, 0.25).save(tmp_path / folder / "x.npz")
    result = compare(tmp_path / "a", tmp_path / "b", tmp_path / "out", scale="indoor", workers=1, progress=False)
    assert result.rows[0]["rmse_db"] == pytest.approx(3, abs=1e-4)
    assert result.rows[0]["bias_db"] == pytest.approx(-3, abs=1e-3), "weaker is negative, though its gray is brighter"


def test_maps_of_different_sizes_fail_alone(folders):
    save(folders[0] / "2_0.png", gain(2, side=32))
    result = compare(*folders, workers=1, progress=False)
    assert len(result.rows) == 5 and ("2_0" in dict(result.failures)) and "32 x 32" in dict(result.failures)["2_0"]


def test_a_path_with_a_letter_wrong_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert could_be_on_the_hub("someone/radio-maps.v2") and not could_be_on_the_hub("runs/predictoins")
    assert not any(map(could_be_on_the_hub, ("maps", "/a/b", "./a", "../a", "a/b/c", "~/a", "a/", "a b/c")))


def test_nothing_to_compare_is_one_clear_line(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    save(tmp_path / "other" / "abc.png", gain())
    for a, message in (
        (tmp_path / "empty", "holds no maps"),
        (tmp_path / "no", "not a folder"),
        (tmp_path / "other", "has the name"),
    ):
        with pytest.raises(ValueError, match=message) as failure:
            compare(a, folders[1], workers=1, progress=False)
        assert "\n" not in str(failure.value)


@pytest.fixture
def data_set(tmp_path):
    """Two open squares with a transmitter each, laid out like RadioMapSeer."""
    import json

    root = tmp_path / "data"
    for m in range(2):
        save(root / f"png/buildings_complete/{m}.png", np.zeros((32, 32)))
        (root / "antenna").mkdir(exist_ok=True)
        (root / f"antenna/{m}.json").write_text(json.dumps([[10 + m, 12]]))
        save(root / f"gain/DPM/{m}_0.png", np.full((32, 32), 100 + m))
    return root


def test_a_predictor_in_place_of_a_folder(data_set, tmp_path, monkeypatch, capsys):
    """The engine is asked about the very scenes of the data set, and its maps are kept beside the truth."""
    from radiodiff_diffusers import engines

    seen = []

    def engine(scene):
        seen.append((scene.name, scene.transmitter))
        return RadioMap.from_gray(np.full((32, 32), 110.0))

    monkeypatch.setattr(engines, "dominant_path", engine, raising=False)
    result = compare_predictor("dominant_path", data_set, tmp_path / "out", progress=False)
    assert seen == [("0_0", (10, 19)), ("1_0", (11, 19))]
    assert [row["mae"] for row in result.rows] == pytest.approx([10 / 255, 9 / 255], rel=1e-4)
    assert (np.asarray(Image.open(tmp_path / "out/predictions/1_0.png")) == 110).all()
    assert (np.asarray(Image.open(tmp_path / "out/truth/1_0.png")) == 101).all()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = ["dominant_path", str(data_set), "-o", str(tmp_path / "again"), "--limit", "1"]
    assert command.run(parser.parse_args(arguments)) == 0 and "1 pairs" in capsys.readouterr().out


def test_a_damaged_map_of_the_data_set_is_listed_and_the_rest_goes_on(data_set, tmp_path, capsys):
    before = compare_predictor("free_space", data_set, tmp_path / "whole", progress=False)
    broken = sorted(data_set.glob("gain/DPM/*.png"))[0]
    broken.write_bytes(broken.read_bytes()[:30])
    after = compare_predictor("free_space", data_set, tmp_path / "broken", progress=False)
    assert len(after.rows) == len(before.rows) - 1 and after.failures[0][0] == f"gain/DPM/{broken.name}"
    assert "1 pair could not be compared" in after.page.read_text()
    for path in data_set.glob("gain/DPM/*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the"):
        compare_predictor("free_space", data_set, tmp_path / "none", progress=False)
    with pytest.raises(ValueError, match="radiodiff data check") as failure:
        compare_predictor("free_space", tmp_path / "whole", tmp_path / "none", progress=False)
    assert "\n" not in str(failure.value)


def test_the_command_and_its_errors(folders, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([*map(str, folders), "-o", str(tmp_path / "c"), "--workers", "1"])) == 0
    assert "6 pairs, 2 unpaired files, 1 failures" in capsys.readouterr().out
    for words, message in (
        (["nowhere", str(folders[1])], "no such folder, and neither an engine nor a model"),
        ([str(folders[0]) + "x", str(folders[1])], "no such folder"),
        ([*map(str, folders), "--limit", "0"], "--limit must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            command.run(parser.parse_args(words))
    with pytest.raises(ValueError, match="use one of radiomapseer, indoor"):
        module.compare(*folders, scale="dBm")

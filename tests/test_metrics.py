"""Scores of maps, against torchmetrics, scipy, the original's recorded figures, and values worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from radiodiff_diffusers.evaluation import metrics
from radiodiff_diffusers.scene import GainScale, RadioMap

GOLDENS = Path(__file__).parent / "goldens" / "metrics_and_splits.json"
SAMPLES = Path(__file__).parents[2] / "shared" / "radiomapseer_samples"


def pair(seed=0, shape=(48, 40)):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0, 255, shape)
    return np.clip(target + rng.normal(0, 20, shape), 0, 255), target


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
@pytest.mark.parametrize("shape", [(48, 40), (16, 129), (256, 256)])
def test_ssim_and_psnr_equal_torchmetrics(protocol, shape):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.image")
    p, t = metrics.to_planes(*pair(shape=shape), protocol)
    tensors = [torch.from_numpy(x)[None, None] for x in (p, t)]
    reference = functional.structural_similarity_index_measure(*tensors, data_range=1.0)
    assert metrics.ssim(p, t) == pytest.approx(float(reference), abs=1e-9)
    reference = functional.peak_signal_noise_ratio(*tensors, data_range=(0.0, 1.0))
    assert metrics.psnr(p, t) == pytest.approx(float(reference), abs=1e-4)


def test_values_worked_out_by_hand():
    target, prediction = np.full((8, 8), 255.0), np.full((8, 8), 204.0)  # 1.0 and 0.8
    scores = metrics.map_metrics(prediction, target)
    assert scores["nmse"] == pytest.approx(0.04)
    assert scores["rmse"] == scores["mae"] == pytest.approx(0.2)
    assert scores["psnr"] == pytest.approx(20 * np.log10(5))
    assert scores["rmse_db"] == pytest.approx(0.2 * 99.16)
    assert metrics.map_metrics(prediction, target, "thr0.2")["rmse"] == pytest.approx(0.25)
    # The threshold changes the unit, not the decibels of what lies above it.
    assert metrics.map_metrics(prediction, target, "thr0.2")["rmse_db"] == pytest.approx(scores["rmse_db"])


def test_threshold_ignores_what_lies_below_the_noise_floor():
    low, lower = np.full((8, 8), 50.0), np.full((8, 8), 10.0)
    assert metrics.map_metrics(low, lower, "thr0.2")["rmse"] == 0
    assert metrics.map_metrics(low, lower)["rmse"] == pytest.approx(40 / 255)


def test_equal_and_empty_maps():
    _, target = pair()
    scores = metrics.map_metrics(target, target)
    assert scores["psnr"] == float("inf") and scores["ssim"] == pytest.approx(1) and scores["nmse"] == 0
    assert np.isnan(metrics.map_metrics(target, np.zeros_like(target))["nmse"])


def test_radio_maps_and_their_gray_levels_score_alike():
    prediction, target = pair()
    for scale in (GainScale.RADIOMAPSEER, GainScale.INDOOR):
        maps = [RadioMap.from_gray(gray, scale) for gray in (prediction, target)]
        from_maps, from_gray = metrics.map_metrics(*maps), metrics.map_metrics(prediction, target, scale=scale)
        assert from_maps == pytest.approx(from_gray, rel=1e-4)
        difference = np.abs(maps[0].gain_db - maps[1].gain_db)
        assert from_maps["mae_db"] == pytest.approx(float(difference.mean()), rel=1e-4)


def test_original_batch_figures_with_the_originals_ranges():
    """Its PSNR is 20 log10(3) above one with range 1, and batches of two are not the mean of two maps."""
    pairs = [pair(seed) for seed in (0, 1)]
    predictions = [pairs[0][0], pairs[1][1]]
    targets = [pairs[0][1], pairs[0][1] / 2]
    one = metrics.original_batch_metrics(predictions[:1], targets[:1])
    assert one["psnr"] == pytest.approx(metrics.map_metrics(predictions[0], targets[0])["psnr"] + 20 * np.log10(3))
    by_batch = metrics.original_batch_metrics(predictions, targets)
    by_map = metrics.original_batch_metrics(predictions, targets, batch_size=1)
    single = [metrics.map_metrics(p, t) for p, t in zip(predictions, targets, strict=True)]
    assert by_batch["rmse"] ** 2 == pytest.approx(np.mean([scores["rmse"] ** 2 for scores in single]))
    assert by_map["nmse"] == pytest.approx(np.mean([scores["nmse"] for scores in single]))
    assert abs(by_batch["nmse"] - by_map["nmse"]) > 0.1


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the RadioMapSeer samples are not here")
def test_recorded_figures_of_the_original():
    recorded = json.loads(GOLDENS.read_text())["pred=0_0,target=0_1"]
    prediction, target = (np.asarray(Image.open(SAMPLES / "gain" / "DPM" / f"{name}.png")) for name in ("0_0", "0_1"))
    batch = metrics.original_batch_metrics([prediction], [target])
    for name in ("nmse", "rmse", "mae"):
        assert batch[name] == pytest.approx(recorded[name], rel=2e-6)
    assert batch["ssim"] == pytest.approx(recorded["ssim_auto_range"], abs=1e-5)
    assert batch["psnr"] == pytest.approx(recorded["psnr_auto_range"], abs=1e-4)
    per_map = metrics.map_metrics(prediction, target)
    assert per_map["psnr"] == pytest.approx(recorded["psnr_range1"], abs=1e-4)
    assert per_map["ssim"] == pytest.approx(recorded["ssim_range1"], abs=1e-5)


def test_regions_part_the_squared_error():
    prediction, target = pair(shape=(40, 40))
    visible = np.zeros((40, 40), bool)
    visible[:, :15] = True
    walls = np.zeros((40, 40), bool)
    walls[:4] = True
    scores = metrics.region_metrics(prediction, target, visible, ignore=walls, edge_pixels=3)
    error = np.square((prediction - target) / 255)
    assert scores["rmse/line_of_sight"] == pytest.approx(np.sqrt(error[4:, :15].mean()))
    assert scores["rmse/shadow"] == pytest.approx(np.sqrt(error[4:, 15:].mean()))
    assert scores["rmse/shadow_edge"] == pytest.approx(np.sqrt(error[4:, 12:18].mean()))
    assert scores["share/line_of_sight"] == pytest.approx(15 / 40)
    assert scores["share/shadow_edge"] == pytest.approx(6 / 40)
    assert scores["rmse_db/shadow"] == pytest.approx(99.16 * scores["rmse/shadow"])
    # The condition plane in [-1, 1] says the same as the mask.
    assert metrics.region_metrics(prediction, target, np.where(visible, 1.0, -1.0), ignore=walls) == scores


def test_an_open_map_has_no_shadow():
    scores = metrics.region_metrics(*pair(), np.ones((48, 40), bool))
    assert np.isnan(scores["rmse/shadow"]) and scores["share/shadow"] == 0 and np.isnan(scores["rmse/shadow_edge"])
    assert scores["rmse/line_of_sight"] == pytest.approx(metrics.map_metrics(*pair())["rmse"])


def test_spread_of_a_right_gaussian_is_calibrated():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(3)
    std = rng.uniform(0.5, 6.0, (200, 200))
    mean = rng.normal(-100, 10, std.shape)
    truth = mean + rng.normal(0, 1, std.shape) * std
    result = metrics.spread_calibration(mean, std, truth)
    assert result["within_2_std"] == pytest.approx(0.954, abs=0.005)
    assert result["within_1_std"] == pytest.approx(0.683, abs=0.01)
    assert result["spearman"] == pytest.approx(spearmanr(std.ravel(), np.abs(mean - truth).ravel()).statistic)
    assert metrics.spread_calibration(mean, std / 4, truth)["within_2_std"] < 0.5
    assert np.isnan(metrics.spread_calibration(mean, np.ones_like(std), truth)["spearman"])


def test_summary_counts_what_has_no_value():
    summary = metrics.summarize([{"psnr": 10.0, "name": "a"}, {"psnr": float("inf"), "name": "b"}, {"psnr": 20.0}])
    assert summary["psnr"]["mean"] == 15 and summary["psnr"]["count"] == 2 and summary["psnr"]["left_out"] == 1
    assert "name" not in summary


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (np.zeros((8, 9)), np.zeros((8, 8)), "9 x 8 pixels but the target 8 x 8"),
        (np.full((8, 8), 300.0), np.zeros((8, 8)), "gray levels 0..255; got 300 .. 300"),
        (np.full((8, 8), np.nan), np.zeros((8, 8)), "gray levels 0..255"),
        (np.zeros((1, 8, 8)), np.zeros((8, 8)), r"one \(height, width\) plane"),
        (RadioMap(np.zeros((8, 8))), RadioMap(np.zeros((8, 8)), GainScale.INDOOR), "different gain scales"),
    ],
)
def test_wrong_input_is_one_clear_line(prediction, target, message):
    with pytest.raises(ValueError, match=message) as failure:
        metrics.map_metrics(prediction, target)
    assert "\n" not in str(failure.value)


def test_unknown_protocol_names_the_known():
    with pytest.raises(ValueError, match=r"raw, thr0\.2"):
        metrics.map_metrics(*pair(), protocol="thr0.5")

"""The model in the package: it loads without a network, is the file that was meant, and has not become worse."""

import hashlib
import json
import socket
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from radiodiff_diffusers import (
    DEFAULT_MODEL,
    RAY_TRACED_ADAPTER,
    RAY_TRACED_MODEL,
    MeanMapModel,
    RadioDiffPipeline,
    Scene,
)
from radiodiff_diffusers.engines import dominant_path, reflected_rays
from radiodiff_diffusers.scene import RadioMap, read_image

HELD_OUT = Path(__file__).parent / "goldens/default_model"
EXPECTED = json.loads((HELD_OUT / "expected.json").read_text())


@pytest.fixture(scope="module")
def pipe():
    with pytest.MonkeyPatch.context() as patch:

        def no_network(*args, **kwargs):
            raise AssertionError("the default model must load without a network")

        patch.setattr(socket.socket, "connect", no_network)
        patch.setattr(socket, "create_connection", no_network)
        pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_weights_are_the_ones_that_were_measured():
    for part, expected in EXPECTED["sha256"].items():
        weights = Path(DEFAULT_MODEL) / part / "diffusion_pytorch_model.safetensors"
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == expected
    assert sum(p.stat().st_size for p in Path(DEFAULT_MODEL).rglob("*")) < 24e6


def test_it_is_as_true_as_it_was(pipe):
    scenes = [Scene(HELD_OUT / f"{name}_buildings.png", transmitter=tx) for name, tx in EXPECTED["scenes"].items()]
    nmse = []
    for name, scene, predicted in zip(EXPECTED["scenes"], scenes, pipe(scenes, generator=0).maps, strict=True):
        truth = read_image(HELD_OUT / f"{name}_gain.png").astype(np.float32)
        free = ~scene.buildings
        nmse.append(np.square(predicted.gray - truth)[free].sum() / np.square(truth[free]).sum())
    assert np.mean(nmse) < 1.05 * EXPECTED["nmse"]


def test_a_single_map_is_the_mean_model_s_and_the_mean_of_several(pipe, monkeypatch):
    name, tx = next(iter(EXPECTED["scenes"].items()))
    scene = Scene(HELD_OUT / f"{name}_buildings.png", transmitter=tx)
    with monkeypatch.context() as patch:

        def not_needed(*args, **kwargs):
            raise AssertionError("the U-Net has no part in these maps")

        patch.setattr(pipe.unet, "forward", not_needed)
        single = pipe(scene, generator=0).maps[0]
        several = pipe(scene, num_maps=8, generator=0)
    free = ~scene.buildings
    assert np.median(np.abs(several.maps[0].gain_db - single.gain_db)[free]) < 1e-3  # but where the scale cuts off
    assert several.maps[0].std_db.max() > 0.1
    from_planes = pipe(pipe.prepare_conditions(scene)[0]).maps[0]  # ready planes are the U-Net's
    assert 0 < np.abs(from_planes.gain_db - single.gain_db)[free].mean() < 2


def test_a_fused_adapter_sets_the_mean_model_aside(tmp_path):
    pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL)
    pipe.set_progress_bar_config(disable=True)
    name, tx = next(iter(EXPECTED["ray_traced"]["scenes"].items()))
    scene = Scene(HELD_OUT / f"{name}_buildings.png", transmitter=tx).crop(64, 64, 128, 128)
    base = pipe(scene).maps[0].gain_db
    pipe.load_lora_weights(RAY_TRACED_ADAPTER)
    adapted = pipe(scene).maps[0].gain_db
    assert np.abs(adapted - base).mean() > 1
    pipe.fuse_lora()
    assert pipe.mean_model is None
    np.testing.assert_allclose(pipe(scene).maps[0].gain_db, adapted, atol=0.1)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    np.testing.assert_allclose(pipe(scene).maps[0].gain_db, base, atol=0.05)


def test_more_steps_than_it_was_made_for_are_warned_of(pipe, caplog):
    name, tx = next(iter(EXPECTED["scenes"].items()))
    scene = Scene(HELD_OUT / f"{name}_buildings.png", transmitter=tx)
    pipe(scene, num_inference_steps=1)
    assert not caplog.messages
    pipe(scene, num_inference_steps=2)
    assert "one step" in caplog.text


def test_the_adapter_makes_ray_traced_maps_and_leaves_the_model_alone(pipe):
    """Two held-out tiles of Florence, traced by Sionna RT (examples/lora/README.md): below half of what engine and
    model reach, and no worse than it was."""
    weights = Path(RAY_TRACED_ADAPTER) / "pytorch_lora_weights.safetensors"
    assert weights.stat().st_size < 3e6
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == EXPECTED["ray_traced"]["sha256"]
    scenes, truths = [], []
    for name, tx in EXPECTED["ray_traced"]["scenes"].items():
        scenes.append(Scene(HELD_OUT / f"{name}_buildings.png", transmitter=tx))
        truths.append(read_image(HELD_OUT / f"{name}_gain.png").astype(np.float32))

    def nmse(maps):
        pairs = zip(maps, truths, strict=True)
        return np.mean([np.square(one.gray - truth).sum() / np.square(truth).sum() for one, truth in pairs])

    before = pipe(scenes, generator=0).maps
    pipe.load_lora_weights(RAY_TRACED_ADAPTER)
    adapted = nmse(pipe(scenes, generator=0).maps)
    pipe.unload_lora_weights()
    after = pipe(scenes, generator=0).maps
    assert all(np.array_equal(one.gain_db, other.gain_db) for one, other in zip(before, after, strict=True))
    assert adapted < 0.5 * min(nmse(before), nmse([dominant_path(scene) for scene in scenes]))
    assert adapted < 1.05 * EXPECTED["ray_traced"]["nmse"]


def test_the_ray_traced_model_is_truer_than_rays_alone(pipe):
    weights = Path(RAY_TRACED_MODEL) / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size < 3e6
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == EXPECTED["ray_traced"]["sha256_of_model"]
    model = MeanMapModel.from_pretrained(RAY_TRACED_MODEL)
    pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL, mean_model=model)
    nmse, of_rays = [], []
    for name, tx in EXPECTED["ray_traced"]["scenes"].items():
        scene = Scene(HELD_OUT / f"{name}_buildings.png", transmitter=tx)
        truth = read_image(HELD_OUT / f"{name}_gain.png").astype(np.float32)
        for scores, one in ((nmse, pipe(scene).maps[0]), (of_rays, reflected_rays(scene))):
            scores.append(np.square(one.gray - truth).sum() / np.square(truth).sum())
    assert np.mean(nmse) < 1.05 * EXPECTED["ray_traced"]["nmse_of_model"]
    assert np.mean(nmse) < 0.8 * np.mean(of_rays)


def test_it_says_how_sure_it_is(pipe):
    """Over the held-out scenes, seen as masks: most of the truth within two deviations, larger errors where it says
    so."""
    scenes = [Scene(HELD_OUT / f"{name}_buildings.png", transmitter=tx) for name, tx in EXPECTED["scenes"].items()]
    within, ranks = [], []
    for name, scene, several in zip(
        EXPECTED["scenes"], scenes, pipe(scenes, num_maps=8, generator=0).maps, strict=True
    ):
        truth = RadioMap.from_gray(read_image(HELD_OUT / f"{name}_gain.png"))
        free = ~scene.buildings & (truth.gain_db > -147)
        error = np.abs(several.gain_db - truth.gain_db)[free]
        within.append((error <= 2 * several.std_db[free]).mean())
        ranks.append(spearmanr(several.std_db[free], error)[0])
    assert 0.85 < np.mean(within) < 0.995 and np.mean(ranks) > 0.25


def test_no_path_of_the_machine_it_was_made_on_travels_with_it():
    for path in Path(DEFAULT_MODEL).rglob("*.json"):
        assert "_name_or_path" not in path.read_text()

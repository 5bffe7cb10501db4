"""The model in the package: it loads without a network, is the file that was meant, and has not become worse."""

import hashlib
import json
import socket
from pathlib import Path

import numpy as np
import pytest

from radiodiff_diffusers import DEFAULT_MODEL, RadioDiffPipeline, Scene
from radiodiff_diffusers.scene import read_image

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
    weights = Path(DEFAULT_MODEL) / "unet/diffusion_pytorch_model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == EXPECTED["sha256"]
    assert sum(p.stat().st_size for p in Path(DEFAULT_MODEL).rglob("*")) < 24e6


def test_it_is_as_true_as_it_was(pipe):
    scenes = [Scene(HELD_OUT / f"{name}_buildings.png", transmitter=tx) for name, tx in EXPECTED["scenes"].items()]
    nmse = []
    for name, scene, predicted in zip(EXPECTED["scenes"], scenes, pipe(scenes, generator=0).maps, strict=True):
        truth = read_image(HELD_OUT / f"{name}_gain.png").astype(np.float32)
        free = ~scene.buildings
        nmse.append(np.square(predicted.gray - truth)[free].sum() / np.square(truth[free]).sum())
    assert np.mean(nmse) < 1.05 * EXPECTED["nmse"]


def test_no_path_of_the_machine_it_was_made_on_travels_with_it():
    for path in Path(DEFAULT_MODEL).rglob("*.json"):
        assert "_name_or_path" not in path.read_text()

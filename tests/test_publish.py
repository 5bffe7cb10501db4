"""The end of a run: the model's folder on the Hub, or one line that says why it is not there."""

import huggingface_hub.hf_api
import pytest
import toy_runs
from hub_standin import HubStandIn
from toy_recipe import make_run
from toy_runs import config_for

from radiodiff_diffusers.training import guard
from radiodiff_diffusers.training.publish import NotUploaded, finish_folder, push_folder

fresh_accelerator = toy_runs.fresh_accelerator


@pytest.fixture
def hub(monkeypatch):
    with HubStandIn() as hub:
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_standin")
        yield hub


def train_and_push(folder, model_id):
    config = config_for(folder / "run", max_steps=2)
    config.hub.push, config.hub.model_id = True, model_id
    run, step = make_run(config)

    def export(model):
        model.mkdir()
        (model / "weights.safetensors").write_bytes(b"weights")
        usage = f'pipe = from_pretrained("{model_id or model}")'
        finish_folder(model, run.folder, config, "toy", usage, run.step)
        push_folder(model, config)

    return run.train(step, export=export)


@pytest.mark.parametrize("model_id, repository", [("you/maps", "you/maps"), ("maps", "me/maps"), (None, "me/run")])
def test_the_folder_goes_to_the_hub_and_its_card_names_it(tmp_path, hub, model_id, repository):
    assert train_and_push(tmp_path, model_id) == 0
    files = hub.repos[f"models/{repository}"]
    assert files["weights.safetensors"] == b"weights" and "training_config.yaml" in files
    card = files["README.md"].decode()
    assert f'from_pretrained("{repository}")' in card and str(tmp_path) not in card


def test_an_upload_that_fails_is_said_and_the_model_stays(tmp_path, hub, monkeypatch, capsys):
    def refuse(*_, **__):
        raise ConnectionResetError("the network\nis gone")

    monkeypatch.setattr("huggingface_hub.upload_folder", refuse)
    assert train_and_push(tmp_path, "me/maps") == guard.EXIT_NOT_SAVED
    said = capsys.readouterr().err
    model = tmp_path / "run/model"
    assert (
        f"the model is in {model}, but could not be uploaded to me/maps (ConnectionResetError: the network is" in said
    )
    assert f"hf upload me/maps {model}" in said and (model / "weights.safetensors").exists()
    with pytest.raises(NotUploaded):
        push_folder(model, config_for(tmp_path / "run"))


def test_nobody_trains_for_an_upload_that_cannot_be(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="nobody is logged in to the Hub: run `hf auth login`"):
        train_and_push(tmp_path, None)
    with pytest.raises(ValueError, match="(?s)me/my maps"):
        train_and_push(tmp_path, "me/my maps")
    assert not (tmp_path / "run").exists()

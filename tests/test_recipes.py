"""Every recipe's every configuration: the numbers are the originals', and two steps of each tiny one work from end to
end."""

import copy
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL
from people_recipes import EXAMPLES, load
from PIL import Image
from toy_recipe import toy_pairs

from radiodiff_diffusers import RadioDiffPipeline, RadioDiffUNet2DModel, Scene
from radiodiff_diffusers.commands.train import find_recipe, make_command
from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS
from radiodiff_diffusers.training.adapters import PRESETS, find_lora_targets
from radiodiff_diffusers.training.config import TrainConfig, parse_config
from radiodiff_diffusers.training.derived import EdgePairs, MadeUpRooms, derive
from radiodiff_diffusers.training.preflight import check_train_config
from radiodiff_diffusers.training.recipe import make_adamw, run_script

RECIPES = {"vae_gan": "VAEConfig", "ldm": "LDMConfig", "lora": "LoRAConfig"}
CONFIGS = [p for r in RECIPES for p in sorted((EXAMPLES / r).glob("*.yaml"))]
TINY = [p for p in CONFIGS if p.stem.endswith("_tiny") and p.stem != "rooms_tiny"]
# what a tiny configuration stands on
NEEDS = {
    "ldm/icassp2025_ldm_tiny": "vae_gan/icassp2025_vae_radio_tiny",
    "ldm/radiomapseer_edge_ldm_tiny": "vae_gan/radiomapseer_edge_vae_tiny",
    "ldm/irt4_tiny": "ldm/radio_train_tiny",
    "ldm/pixels_small_tiny": None,
    "lora/ray_traced_tiny": "ldm/pixels_small_tiny",
    "lora/ray_traced_cities_tiny": "ldm/pixels_small_tiny",
}


@pytest.fixture(autouse=True)
def fresh_state(one_thread):
    AcceleratorState._reset_state()


def key(path):
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Runs recipes in one folder, each once; `trained(name)` gives its output."""
    root = tmp_path_factory.mktemp("recipes")
    done = {}

    def trained(name, *more):
        if name in done and not more:
            return done[name]
        recipe, stem = name.split("/")
        needed = NEEDS.get(name, "vae_gan/first_radio_tiny" if recipe == "ldm" else None)
        if needed:
            trained(needed)
        arguments = ["--config", str(EXAMPLES / recipe / f"{stem}.yaml"), "--max_steps", "2", "--batch_size", "2"]
        arguments += ["--validation.scenes", "2", "--validation.steps", "2", "--trackers", "", "--log_steps", "1",
                      "--lr_warmup_steps", "0"]  # fmt: skip
        config = parse_config(getattr(load(recipe), RECIPES[recipe]), arguments)
        if config.data.simulate:
            arguments += ["--data.simulate.transmitters", "1"]
        if recipe == "vae_gan":
            arguments += ["--disc_start", "1"]  # so that both phases run
        if recipe == "ldm":
            arguments += ["--inference_steps", "1"]
        before = Path.cwd()
        os.chdir(root)
        try:
            AcceleratorState._reset_state()
            assert load(recipe).main([*arguments, *more]) == 0
        finally:
            os.chdir(before)
        if more:  # a run of its own, whose folder comes last; not what other tests mean by this name
            return root / more[-1]
        done[name] = root / config.train.output_dir
        return done[name]

    return trained


@pytest.mark.parametrize("path", CONFIGS, ids=key)
def test_every_configuration_reads(path):
    config = parse_config(getattr(load(path.parent.name), RECIPES[path.parent.name]), ["--config", str(path)])
    if path.stem != "rooms_tiny":
        assert config.train.output_dir == f"runs/{path.stem}" or path.parent.name == "lora"
    if not path.stem.endswith("_tiny"):
        tiny = path.with_name(f"{path.stem}_tiny.yaml")
        assert tiny.exists(), "each has one that runs in two minutes"


@pytest.mark.parametrize("path", TINY, ids=key)
def test_two_steps_of_each_tiny_configuration(workplace, path):
    folder = workplace(key(path))
    losses = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [e for e in losses if e["event"] == "train"]
    assert [e["step"] for e in steps] == [1, 2] and all(np.isfinite(e["loss"]) for e in steps)
    (validation,) = [e for e in losses if e["event"] == "validation"]
    assert np.isfinite(validation["nmse"]) and (folder / validation["images"]).exists()
    assert (folder / "model/README.md").read_text().startswith("---\nlicense:")
    if path.parent.name == "vae_gan":
        assert "loss/adversarial" not in steps[0] and "loss/adversarial" in steps[1]


def test_the_autoencoder_loads(workplace):
    vae = AutoencoderKL.from_pretrained(workplace("vae_gan/first_radio_tiny") / "model")
    assert 0.1 < vae.config.scaling_factor < 1e5 and vae.config.scaling_factor != 0.3  # measured
    assert vae.decode(vae.encode(torch.zeros(1, 1, 64, 64)).latent_dist.mode()).sample.shape == (1, 1, 64, 64)


def test_the_diffusion_model_loads_and_its_card_says_what_it_is(workplace):
    folder = workplace("ldm/radio_train_tiny") / "model"
    pipe = RadioDiffPipeline.from_pretrained(folder)
    buildings = np.zeros((64, 64), bool)
    buildings[20:30, 20:30] = True
    radio_map = pipe(Scene(buildings, transmitter=(40, 40)), num_inference_steps=1, generator=0).maps[0]
    assert radio_map.shape == (64, 64) and np.isfinite(radio_map.gain_db).all()
    card = (folder / "README.md").read_text()
    for part in ("conditioned on: buildings, transmitter, visibility, log_distance", "protocol `raw`",
                 "from_pretrained", "images/validation.png", "## Licence", "max_steps: 2"):  # fmt: skip
        assert part in card, part
    text = "".join(p.read_text() for p in folder.rglob("*.json")) + card
    assert "_name_or_path" not in text and "/tmp" not in text
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in folder.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "name",
    ["vae_gan/first_radio_tiny", "vae_gan/icassp2025_vae_building_tiny", "ldm/radio_train_tiny",
     "vae_gan/icassp2025_multi_condition_vae_dual_tiny", "lora/ray_traced_tiny", "lora of the default model"],
)  # fmt: skip
def test_what_a_card_says_runs(workplace, monkeypatch, tmp_path, name):
    if name == "lora of the default model":
        more = ["--model.base", "default", "--output_dir", str(tmp_path / "run")]
        folder = workplace("lora/ray_traced_tiny", *more)
    else:
        folder = workplace(name)
    card = (folder / "model/README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder.parent.parent if name.endswith("tiny") else tmp_path)
    Image.fromarray(np.zeros((128, 128), np.uint8)).save("buildings.png")
    channels = 2 if "building" in name else 1
    given = {"image": torch.zeros(1, channels, 64, 64), "condition": torch.zeros(1, 3, 64, 64)}
    exec(code, given)
    if name.startswith("vae_gan"):
        assert given["decoded"].shape == given["image"].shape
    else:
        assert Image.open("map.png").size == (128, 128)


def test_the_averages_are_published_with_their_buffers(workplace):
    """What is saved is the moving average, not the last weights, and frozen parts are as they were."""
    from safetensors.torch import load_file

    folder = workplace("ldm/radio_train_tiny")
    checkpoint = sorted((folder / "checkpoints").glob("step_*"))[-1]
    average, last = load_file(checkpoint / "ema.safetensors"), load_file(checkpoint / "models.safetensors")
    saved = load_file(folder / "model/unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(saved[k], average[f"unet.{k}"]) for k in saved)
    assert any(not torch.equal(saved[k], last[f"unet.{k}"]) for k in saved)
    trained = AutoencoderKL.from_pretrained(workplace("vae_gan/first_radio_tiny") / "model").state_dict()
    used = AutoencoderKL.from_pretrained(folder / "model", subfolder="vae").state_dict()
    assert all(torch.equal(trained[k], used[k]) for k in trained)


def test_cached_latents_train_alike(workplace, tmp_path):
    """The same steps from the cache as from the autoencoder (the cache is float16), symmetries included."""
    plain = workplace("ldm/radio_train_tiny")
    cached = workplace(
        "ldm/radio_train_tiny", "--cache_latents", str(tmp_path / "latents"), "--output_dir", str(tmp_path / "cached")
    )

    def losses(folder):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [e["loss"] for e in lines if e["event"] == "train"]

    assert np.allclose(losses(plain), losses(cached), rtol=2e-2)
    shape = np.load(tmp_path / "latents/latents.npy", mmap_mode="r").shape
    assert shape == (10, 8, 2, 3, 16, 16)  # samples, symmetries, mean and std


# LoRA
# -------------------------------------------------------------------------------------------------------------------


def fingerprint(folder):
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def test_the_adapter_loads_mixes_and_leaves_the_base_alone(workplace):
    base = workplace("ldm/pixels_small_tiny") / "model"
    before = fingerprint(base)
    adapter = workplace("lora/ray_traced_tiny") / "model"
    assert fingerprint(base) == before
    assert (adapter / "pytorch_lora_weights.safetensors").exists()
    assert not list(adapter.glob("**/diffusion_pytorch_model*"))

    pipe = RadioDiffPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    scene = Scene(np.zeros((64, 64), bool), transmitter=(30, 20))

    def predict():
        return pipe(scene, num_inference_steps=1, generator=0).maps[0].gain_db

    plain = predict()
    pipe.load_lora_weights(adapter, adapter_name="one")
    pipe.load_lora_weights(adapter, adapter_name="two")
    pipe.set_adapters(["one"])
    adapted = predict()
    assert not np.array_equal(adapted, plain)
    pipe.disable_lora()
    assert np.array_equal(predict(), plain)  # bit for bit
    pipe.enable_lora()
    pipe.set_adapters(["one", "two"], [0.5, 0.5])
    assert np.allclose(predict(), adapted, atol=2e-3)
    pipe.set_adapters(["one"])
    pipe.fuse_lora(adapter_names=["one"])
    assert np.allclose(predict(), adapted, atol=2e-3)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert np.allclose(predict(), plain, atol=2e-3)


def test_adapters_are_small_on_the_base_preset():
    from peft import LoraConfig

    with torch.device("meta"):
        unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["base"])
    size = sum(p.numel() for p in unet.parameters())
    unet.add_adapter(LoraConfig(r=8, target_modules=find_lora_targets(unet, list(PRESETS))))
    adapter = sum(p.numel() for n, p in unet.named_parameters() if "lora_" in n)
    assert 0.002 < adapter / size <= 0.02
    assert all(("lora_" in n) == p.requires_grad for n, p in unet.named_parameters())


def test_targets_are_found_or_named():
    unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"])
    for preset in PRESETS:
        assert find_lora_targets(unet, [preset])
    assert find_lora_targets(unet, ["to_q"]) == [n for n, _ in unet.named_modules() if n.endswith(".to_q")]
    with pytest.raises(ValueError, match="'atention' names no linear .* presets: attention"):
        find_lora_targets(unet, ["atention"])
    with pytest.raises(ValueError, match="names no linear or plain"):
        find_lora_targets(unet, ["conv1"])  # its weights are standardised


# Data
# -------------------------------------------------------------------------------------------------------------------


def test_other_tasks_of_the_same_data(tmp_path):
    pairs = toy_pairs(4, size=32)
    scene, edges = derive(pairs, ["edges"])[0]
    assert np.array_equal(scene.measurements, pairs[0][1].gain_db) and set(np.unique(edges.gray)) <= {0.0, 255.0}
    scene, _ = derive(pairs, ["k2"])[1]
    assert scene.k2.shape == (32, 32) and 0 <= scene.k2.min() < scene.k2.max() <= 1
    scene, radio_map = derive(pairs, ["missing_buildings"])[2]
    gone = pairs[2][0].buildings & ~scene.buildings
    assert gone.any() and not (scene.buildings & ~pairs[2][0].buildings).any() and radio_map is pairs[2][1]
    with pytest.raises(ValueError, match="data.derive names 'edge'; known: edges"):
        derive(pairs, ["edge"])

    for name in ("image", "edge"):
        (tmp_path / "val" / name).mkdir(parents=True)
        pairs[0][1].to_image().save(tmp_path / "val" / name / "0_0.png")
    assert EdgePairs.found_in(tmp_path, "val") and not EdgePairs.found_in(tmp_path / "val/edge", "val")
    found = EdgePairs(tmp_path, "val")
    assert len(found) == 1 and np.allclose(found[0][0].measurements, pairs[0][1].gain_db, atol=0.4)


def test_made_up_rooms_are_the_same_every_time():
    one, other = MadeUpRooms(seed=1)[3], MadeUpRooms(seed=1)[3]
    assert np.array_equal(one[1].gain_db, other[1].gain_db)
    assert not np.array_equal(one[1].gain_db, MadeUpRooms("val", seed=1)[3][1].gain_db)
    assert -160 <= one[1].gain_db.min() < one[1].gain_db.max() <= -13


def test_imagenet_weights_reach_the_encoder(monkeypatch):
    import torchvision.models

    from radiodiff_diffusers.training.recipe import load_imagenet_encoder

    swin = torchvision.models.swin_b(weights=None)
    monkeypatch.setattr(torchvision.models, "swin_b", lambda weights: swin)
    small = {**RADIODIFF_UNET_PRESETS["test"], "condition_encoder": "swin", "condition_encoder_config": None}
    unet = RadioDiffUNet2DModel(**small)
    load_imagenet_encoder(unet)
    x = torch.randn(1, 3, 64, 64)
    swin.eval(), unet.eval()
    with torch.no_grad():
        ours, theirs = unet.encoder(x), x
        for number, layer in enumerate(swin.features):
            theirs = layer(theirs)
            if number % 2:
                torch.testing.assert_close(ours[number // 2], theirs.permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4)

    def offline(weights):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "swin_b", offline)
    with pytest.raises(ValueError, match="could not be downloaded .*encoder_weights none"):
        load_imagenet_encoder(unet)


# Numbers
# ----------------------------------------------------------------------------------------------------------------


def read(recipe, stem):
    path = EXAMPLES / recipe / f"{stem}.yaml"
    return parse_config(getattr(load(recipe), RECIPES[recipe]), ["--config", str(path)])


@pytest.mark.parametrize(
    "stem, batch, channels, latent, images",
    [
        ("first_radio", (2, 2), 128, 3, ["map"]),
        ("first_radio_m", (2, 1), 128, 3, ["map"]),
        ("icassp2025_vae", (4, 2), 64, 3, ["map"]),
        ("icassp2025_vae_building", (16, 2), 64, 2, ["reflectance", "transmittance"]),
        ("icassp2025_vae_antenna", (16, 2), 64, 1, ["free_space_loss"]),
        ("icassp2025_vae_radio", (16, 2), 64, 1, ["map"]),
        ("icassp2025_multi_condition_vae_single", (16, 2), 128, 3, ["map"]),
        ("icassp2025_multi_condition_vae_dual", (16, 2), 128, 3, ["map"]),
        ("radiomapseer_edge_vae", (16, 1), 128, 3, ["map"]),
    ],
)
def test_the_autoencoders_numbers(stem, batch, channels, latent, images):
    c = read("vae_gan", stem)
    assert (c.train.batch_size, c.train.gradient_accumulation_steps) == batch
    assert (c.model.channels, c.model.latent_channels, c.data.image_channels) == (channels, latent, images)
    assert c.train.max_steps == (100_000 if "edge" in stem else 150_000)
    assert (c.train.learning_rate, c.train.lr_floor, c.train.lr_schedule) == (5e-6, 5e-7, "cosine_floor")
    assert (c.loss.kl_weight, c.loss.disc_weight, c.loss.disc_start) == (1e-6, 0.5, 50001)
    assert c.loss.perceptual_weight == (0.1 if "multi" in stem else 1.0)
    assert (c.model.multipliers, c.model.layers_per_block, c.train.mixed_precision) == ([1, 2, 4], 2, "no")
    assert (c.train.checkpoint_steps, c.train.log_steps) == (5000, 100)


@pytest.mark.parametrize(
    "stem, batch, rates, weighting, scale, clip, precision",
    [
        ("radio_train", (66, 8), (5e-5, 5e-6), True, 0.3, 1.0, "no"),
        ("radio_train_m", (32, 1), (1e-6, 1e-6), False, 0.18215, 0.5, "bf16"),
        ("radio_train_m2", (32, 1), (5e-6, 1e-6), False, 0.18215, 0.5, "bf16"),
        ("irt4", (66, 8), (5e-5, 5e-6), True, 0.3, 1.0, "no"),
        ("radiomapseer_edge_ldm", (32, 1), (5e-5, 5e-6), False, 0.3, 1.0, "no"),
    ],
)
def test_the_diffusion_models_numbers(stem, batch, rates, weighting, scale, clip, precision):
    c = read("ldm", stem)
    assert (c.train.batch_size, c.train.gradient_accumulation_steps) == batch
    assert (c.train.learning_rate, c.train.lr_floor) == rates
    assert (c.loss.weighting, c.loss.l1, c.model.scaling_factor) == (weighting, True, scale)
    assert (c.train.max_grad_norm, c.train.mixed_precision) == (clip, precision)
    assert (c.train.lr_schedule, c.train.lr_power, c.train.weight_decay) == ("polynomial_floor", 0.96, 1e-4)
    assert (c.ema.decay, c.ema.start, c.ema.interval, c.train.max_steps) == (0.999, 10_000, 10, 50_000)
    if stem == "irt4":
        assert c.train.init_from and c.data.options == {"simulation": "IRT4", "transmitters": [0, 1]}


# Processes and the command
# ----------------------------------------------------------------------------------------------


def two_steps(recipe, stem, folder, cwd, processes, *more):
    # the same global batch of four, nothing random in the network, each half of it normalised alone
    arguments = ["--config", str(EXAMPLES / recipe / f"{stem}.yaml"), "--max_steps", "3", "--log_steps", "1",
                 "--batch_size", str(4 // processes), "--trackers", "", "--validation.scenes", "4",
                 "--train.batch_norm_eval", "true", "--output_dir", str(folder), *more]  # fmt: skip
    command = make_command(recipe, ["--cpu", "--num-processes", str(processes), *arguments])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=560)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(x) for x in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [e["loss"] for e in lines if e["event"] == "train"], [
        e["nmse"] for e in lines if e["event"] == "validation"
    ]


NO_DROPOUT = {
    "base_channels": 16, "channel_multipliers": [1, 1, 1, 1], "window_sizes": [2, 2, 1, 1], "attention_head_dim": 4,
    "sample_size": 64, "patch_size": 4, "relation_dropout": 0.0,
    "condition_encoder_config": {"width": 8, "stride": 4, "max_width": 16},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(RECIPES))
def test_two_processes_do_what_one_does(workplace, tmp_path, recipe):
    """The same global batch: losses to 1e-4 (batch norm in eval mode, a fixed adversarial weight), sharded validation
    too."""
    root = workplace("lora/ray_traced_tiny").parent.parent
    workplace("vae_gan/first_radio_tiny")
    stem, more = {
        "vae_gan": ("first_radio_tiny", ["--adaptive_weight", "false", "--disc_start", "1"]),
        "ldm": ("pixels_small_tiny", ["--model.unet", json.dumps(NO_DROPOUT), "--inference_steps", "1"]),
        "lora": ("ray_traced_tiny", []),
    }[recipe]
    if recipe == "lora":
        base = tmp_path / "base"
        unet = RadioDiffUNet2DModel(
            **{**RADIODIFF_UNET_PRESETS["test"], **NO_DROPOUT, "condition_channels": ["buildings", "transmitter"]}
        )
        from radiodiff_diffusers import ConstSDEScheduler

        RadioDiffPipeline(unet, ConstSDEScheduler()).save_pretrained(base)
        more = ["--model.base", str(base), "--lr_warmup_steps", "0"]
    more += ["--data.simulate.transmitters", "1"]
    one = two_steps(recipe, stem, tmp_path / "one", root, 1, *more)
    two = two_steps(recipe, stem, tmp_path / "two", root, 2, *more)
    assert len(one[0]) == 3 and np.allclose(one[0], two[0], rtol=1e-4)
    assert np.allclose(one[1], two[1], rtol=1e-3)
    # only the main process writes
    assert len(list((tmp_path / "two/checkpoints").glob("step_*"))) == len(
        list((tmp_path / "one/checkpoints").glob("step_*"))
    )


def test_the_command_says_what_it_starts_or_where_the_recipes_are(monkeypatch, tmp_path):
    command = make_command("ldm", ["--config", "radio_train_tiny.yaml", "--max_steps", "3", "--num-processes", "2"])
    assert command[3:6] == ["launch", "--num_processes", "2"]
    assert command[6:] == [
        "--quiet", str(EXAMPLES / "ldm/train.py"), "--config", str(EXAMPLES / "ldm/radio_train_tiny.yaml"),
        "--max_steps", "3",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="there is no recipe 'lmd'; there are: .*ldm"):
        find_recipe("lmd")
    monkeypatch.setattr(
        "radiodiff_diffusers.__file__", str(tmp_path / "site-packages/radiodiff_diffusers/__init__.py")
    )
    with pytest.raises(ValueError, match="clone the repository"):
        find_recipe("ldm")


@pytest.mark.slow
def test_the_command_hands_on_signals(workplace, tmp_path):
    root = workplace("ldm/pixels_small_tiny").parent.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "radiodiff_diffusers.cli", "train", "ldm", "--cpu", "--config",
         "pixels_small_tiny.yaml", "--max_steps", "100000", "--log_steps", "1", "--trackers", "",
         "--data.simulate.transmitters", "1",
         "--output_dir", str(tmp_path / "run")],
        cwd=root,
    )  # fmt: skip
    metrics = tmp_path / "run/metrics.jsonl"
    end = time.monotonic() + 300
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) != 0
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert last["event"] == "end" and last["status"] == "stopped"
    assert (tmp_path / f"run/checkpoints/step_{last['step']:08d}/manifest.json").exists()


@pytest.mark.parametrize(
    "recipe, stem, given, message",
    [
        ("ldm", "pixels_small_tiny", ["--init_from", "gone"], r"error: train.init_from: gone: no such file or folder"),
        ("ldm", "pixels_small_tiny", ["--init_from", "."], r"error: .*config.json"),
        ("ldm", "pixels_small_tiny", ["--model.vae", "runs/gone"], r"error: model.vae: runs/gone: .*train it first"),
        ("lora", "ray_traced_tiny", ["--model.base", "runs/gone/model"], r"error: model.base: runs/gone/model: no"),
        ("lora", "ray_traced_tiny", ["--model.base", "."], r"error: .*model_index.json"),
        ("vae_gan", "first_radio_tiny", ["--init_from", "."], r"error: .*config.json"),
        ("vae_gan", "first_radio_tiny", ["--dataset", "gone/data/maps"], r"error: .*gone/data/maps"),
        ("vae_gan", "first_radio_tiny", ["--dataset", "data/mpas"], r"error: data.source: data/mpas: no such folder"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, monkeypatch, recipe, stem, given, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data").mkdir()  # so data/mpas is a slip, not a name on the Hub
    config = str(EXAMPLES / recipe / f"{stem}.yaml")
    few = ["--config", config, "--data.simulate.cities", "12", "--data.simulate.transmitters", "1"]
    few = few[:2] if "--dataset" in given else few
    with pytest.raises(SystemExit) as stopped:
        run_script(lambda: load(recipe).main([*few, *given]))
    text = stopped.value.code
    assert re.match(message, text) and "\n" not in text, text


# Gradients in half precision
# -------------------------------------------------------------------------------------------------------------------


def test_half_gradients_step_as_adamw_does_with_rounded_ones():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))
    twin = copy.deepcopy(model)
    optimizer = make_adamw(model, TrainConfig(half_gradients=True))
    reference = make_adamw(twin, TrainConfig())
    for _ in range(3):
        batch = torch.randn(4, 6)
        model(batch).square().sum().backward()
        twin(batch).square().sum().backward()
        assert [p.grad.dtype for p in model.parameters()] == [torch.bfloat16, torch.float32] * 2
        for parameter in twin.parameters():
            if parameter.ndim > 1:
                parameter.grad = parameter.grad.bfloat16().float()
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(one.grad.float(), other.grad)
        optimizer.step(), reference.step()
        optimizer.zero_grad(), reference.zero_grad()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))  # a checkpoint of either serves both


def test_a_run_with_half_gradients_is_nearly_the_same(workplace, tmp_path):
    def losses(name, *more):
        more = ["--mixed_precision", "bf16", "--max_steps", "3", *more, "--output_dir", str(tmp_path / name)]
        lines = (workplace("ldm/radio_train_tiny", *more) / "metrics.jsonl").read_text().splitlines()
        return [e["loss"] for e in map(json.loads, lines) if e["event"] == "train"]

    half, whole = losses("half", "--half_gradients", "true"), losses("whole")
    assert len(half) == 3 and np.allclose(half, whole, rtol=1e-3)
    state = torch.load(tmp_path / "half/checkpoints/step_00000003/training.pt", weights_only=True)
    moments = state["optimizers"]["unet"]["state"]
    assert moments and all(s["exp_avg"].dtype == torch.float32 for s in moments.values())


@pytest.mark.parametrize("changed", [{}, {"mixed_precision": "bf16", "gradient_accumulation_steps": 2}])
def test_half_gradients_are_refused_where_they_would_lose(changed):
    with pytest.raises(ValueError, match="half_gradients goes with"):
        check_train_config(TrainConfig(half_gradients=True, **changed), torch.device("cpu"))

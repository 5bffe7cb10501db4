"""The VA-VAE recipe: the guide's numbers, the loss that is minimised, stages, starting weights, and what must stop."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from people_recipes import EXAMPLES, events, load, tiny_people, train
from safetensors.torch import load_file, save_file
from test_vavae import original_state_dict

from radiodiff_diffusers.training.config import parse_config

CONFIGS = sorted((EXAMPLES / "va_vae").glob("*.yaml"))
TINY = [p.stem for p in CONFIGS if p.stem.endswith("_tiny")]
SMALL = [
    "--size", "32", "--batch_size", "2", "--model.channels", "8", "--norm_groups", "4", "--multipliers", "1,1,2",
    "--max_steps", "2", "--validation.steps", "2", "--scenes", "2", "--checkpoint_steps", "1",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return tiny_people(tmp_path_factory.mktemp("people") / "data")


def read(name, *more):
    return parse_config(load("va_vae").VAVAEConfig, ["--config", str(EXAMPLES / f"va_vae/{name}.yaml"), *more])


def go(people, folder, *more, config="micro_doppler_tiny"):
    return train("va_vae", config, folder, "--data.source", people, *SMALL, *more)


# Configurations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_reads_and_has_a_tiny_one(path):
    config = read(path.stem)
    assert config.train.output_dir == f"runs/{path.stem}"
    tiny = {"micro_doppler_dinov2": "micro_doppler_tiny", "simulated_users": "micro_doppler_tiny"}
    assert path.stem.endswith("_tiny") or tiny.get(path.stem, f"{path.stem}_tiny") in TINY


def test_the_guides_numbers():
    config = read("micro_doppler_dinov2")
    assert config.model.multipliers == [1, 1, 2, 2, 4] and config.model.channels == 128
    assert config.model.latent_channels == 32 and config.alignment.foundation == "dinov2"
    assert config.train.learning_rate == 1e-5 and config.train.batch_size == 2 and config.epochs == 100
    assert config.train.adam_betas == [0.5, 0.9] and config.train.weight_decay == 0
    assert config.alignment.weight == 0.05 and config.alignment.adaptive and config.alignment.reverse_proj
    assert config.loss.disc_weight == 0.3 and config.loss.disc_start == 500 and config.loss.kl_weight == 1e-6
    assert config.data.time_shift == 0 and not config.data.horizontal_flip and config.data.num_classes == 31
    assert read("micro_doppler_mae").alignment.foundation == "mae"
    assert read("micro_doppler_plain").alignment.foundation == "none"


def test_the_full_size_has_the_published_parameters():
    with torch.device("meta"):
        vae = load("va_vae").make_vae(read("micro_doppler_dinov2"), 3)
    assert sum(p.numel() for p in vae.parameters()) == 69_836_067 and len(vae.state_dict()) == 342
    with torch.device("meta"):
        mar = load("va_vae").make_vae(read("mar"), 3)
        sisters = {d: load("va_vae").make_vae(read(f"f16d{d}"), 3) for d in (16, 64)}
    assert len(mar.state_dict()) == 312 and mar.config.latent_channels == 16
    assert mar.config.up_block_types == ["UpDecoderBlock2D"] * 5 and mar.config.mid_block_add_attention
    assert read("mar").alignment.foundation == "none" and read("f16d64").alignment.foundation == "dinov2"
    for latent, sister in sisters.items():
        shapes = {name: tensor.shape for name, tensor in sister.state_dict().items()}
        different = [name for name, tensor in vae.state_dict().items() if shapes[name] != tensor.shape]
        # only what touches the latent: the encoder's last layer, both 1 x 1 convolutions, the decoder's first layer
        assert {name.rsplit(".", 1)[0] for name in different} == {
            "encoder.conv_out", "quant_conv", "post_quant_conv", "decoder.conv_in"
        }  # fmt: skip
        assert shapes["quant_conv.weight"] == (2 * latent, 2 * latent, 1, 1) and len(shapes) == 342


# Training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(people, tmp_path_factory):
    """Two steps, the second with the discriminator."""
    return go(people, tmp_path_factory.mktemp("runs") / "run", "--disc_start", "1")


def test_two_steps(trained):
    first, second = events(trained, "train")
    assert "loss/g_loss" not in first and "loss/g_loss" in second
    for name in ("rec_loss", "nll_loss", "kl_loss", "vf_loss", "vf_weight"):
        assert np.isfinite(first[f"loss/{name}"]), name
    (validation,) = events(trained, "validation")
    assert {"rec_loss", "psnr", "ssim", "kl_loss", "vf_loss"} <= validation.keys()
    assert (trained / validation["images"]).exists()
    assert events(trained, "start")[0]["disc_start"] == 1
    assert [e["best"] for e in events(trained, "checkpoint")][-1] is True  # the least rec_loss so far
    vae = AutoencoderKL.from_pretrained(trained / "model")
    assert vae.config.scaling_factor == 1.0 and vae.config.latent_channels == 8
    card = (trained / "model/README.md").read_text()
    assert "rec_loss" in card and "not trained on" in card and "five times their difference" in card


def test_what_is_minimised_is_the_published_objective(trained):
    """L = nll + 1e-6 kl + w_vf L_vf + w_gan g, and the discriminator's own loss; L_vf is cosine plus distance."""
    first, second = ({k.removeprefix("loss/"): v for k, v in e.items()} for e in events(trained, "train"))
    total = first["nll_loss"] + 1e-6 * first["kl_loss"] + first["vf_weight"] * first["vf_loss"]
    assert first["loss"] == pytest.approx(total, rel=1e-5)
    total = second["nll_loss"] + 1e-6 * second["kl_loss"] + second["vf_weight"] * second["vf_loss"]
    total += second["d_weight"] * second["g_loss"] + second["disc_loss"]
    assert second["loss"] == pytest.approx(total, rel=1e-5)
    assert first["vf_loss"] == pytest.approx(first["vf_cosine"] + first["vf_distance"], rel=1e-5)
    pixels = 3 * 32 * 32
    assert first["nll_loss"] == pytest.approx(pixels * first["rec_loss"], rel=1e-4)  # no LPIPS: a sum over pixels
    assert first["vf_weight"] > 0.05 * 10  # balanced with a sum over pixels, it is far from the plain weight


def test_resuming_repeats_the_run(people, trained, tmp_path):
    """Three models, two optimisers: after a stop at step 1 the second step is the same to the bit."""
    stopped = go(people, tmp_path / "run", "--disc_start", "1", "--max_steps", "1", "--validation.steps", "0")
    go(people, stopped, "--disc_start", "1", "--resume", "latest")
    same = "loss/nll_loss", "loss/vf_loss", "loss/g_loss", "loss/disc_loss"
    (_, first), (_, second) = (events(folder, "train") for folder in (trained, stopped))
    assert {k: first[k] for k in same} == {k: second[k] for k in same}
    one, two = (load_file(f / "checkpoints/step_00000002/models.safetensors") for f in (trained, stopped))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert {k.split(".")[0] for k in one} == {"vae", "discriminator", "projection"}


def test_the_projection_trains_with_the_autoencoder(trained):
    before = load_file(trained / "checkpoints/step_00000001/models.safetensors")
    after = load_file(trained / "checkpoints/step_00000002/models.safetensors")
    for name in ("projection.weight", "vae.encoder.conv_out.weight", "discriminator.main.0.weight"):
        assert not torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("name", [n for n in TINY if n != "micro_doppler_tiny"])
def test_two_steps_of_the_variants(people, tmp_path, name):
    stages = ["--stages", "[{steps: 1, vf_weight: 0.5, disc_start: 0}, {steps: 1, distance_margin: 9}]"]
    staged = bool(read(name).stages)
    folder = go(people, tmp_path / "run", *(stages if staged else []), config=name)
    first, second = events(folder, "train")
    assert ("loss/vf_loss" in first) == (name not in ("micro_doppler_plain_tiny", "mar_tiny"))
    vae = AutoencoderKL.from_pretrained(folder / "model")
    assert vae.config.latent_channels == {"f16d16_tiny": 4, "f16d64_tiny": 16, "mar_tiny": 4}.get(name, 8)
    attention = any(".attentions." in k for k in vae.state_dict() if k.startswith("decoder.up_blocks"))
    assert attention == (name != "mar_tiny")
    if staged:
        assert "loss/disc_loss" in first and "loss/disc_loss" not in second  # disc_start 150 of the second stage
        assert second["loss/vf_distance"] == 0 < first["loss/vf_distance"]  # no distance is beyond the margin


def test_the_trackers_have_the_guides_names(people, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = go(people, tmp_path / "run", "--disc_start", "0", "--trackers", "tensorboard", "--max_steps", "1")
    names = set()
    for file in (folder / "logs").rglob("events.out.tfevents*"):
        log = EventAccumulator(str(file))
        log.Reload()
        names |= set(log.Tags()["scalars"])
    named = ("rec_loss", "nll_loss", "kl_loss", "vf_loss", "vf_weight", "g_loss", "d_weight", "disc_loss",
             "logits_real", "logits_fake", "loss", "lr")  # fmt: skip
    assert {f"train/{name}" for name in named} <= names
    assert {"val/rec_loss", "val/vf_loss", "val/kl_loss", "val/psnr", "val/ssim"} <= names
    assert not any(name.startswith(("loss/", "validation/")) for name in names)


def test_the_corrected_preprocessing_reaches_the_foundation_model():
    for name in ("antialias", "imagenet_normalization"):
        assert getattr(read("micro_doppler_dinov2").alignment, name) is False  # as published
        config = read("micro_doppler_tiny", f"--{name}", "true")
        assert getattr(load("va_vae").make_foundation(config, torch.device("cpu")), name) is True


def test_stages_know_their_place():
    recipe, config = load("va_vae"), read("three_stage")
    stages = recipe.plan_stages(config, images=4000, processes=2)  # 250 steps an epoch
    assert [s.start for s in stages] == [0, 25_000, 28_750] and config.train.max_steps == 32_500
    assert [s.alignment.weight for s in stages] == [0.5, 0.1, 0.1]
    assert (stages[2].alignment.cos_margin, stages[2].alignment.distance_margin) == (0.5, 0.25)
    assert [s.loss.disc_start for s in stages] == [2500, 0, 0] and recipe.first_disc_start(stages) == 2500
    assert [recipe.stage_at(stages, n).start for n in (0, 24_999, 25_000, 10**6)] == [0, 0, 25_000, 28_750]
    config = read("micro_doppler_dinov2")
    recipe.plan_stages(config, images=3720, processes=1)
    assert config.train.max_steps == 186_000 and config.validation.steps == "5 epochs"
    for wrong, message in (("[{vf_weight: 1}]", "either epochs or steps"), ("[{steps: 1, vf_wait: 1}]", "vf_wait"),
                           ("[{steps: 1, foundation: mae}]", "foundation")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            recipe.plan_stages(read("three_stage", "--stages", wrong), 100, 1)


def test_gray_images(people, tmp_path):
    folder = go(people, tmp_path / "run", "--data.channels", "1", "--disc_start", "0")
    assert AutoencoderKL.from_pretrained(folder / "model").config.in_channels == 1


def test_radio_maps_get_an_aligned_tokenizer_too(tmp_path):
    more = ["--kind", "maps", "--data.source", "made_up_rooms", "--data.options", "{size: 32, count: 6}"]
    folder = train("va_vae", "micro_doppler_tiny", tmp_path / "run", *SMALL, *more, "--disc_start", "1")
    assert all(np.isfinite(e["loss/vf_loss"]) for e in events(folder, "train"))
    assert AutoencoderKL.from_pretrained(folder / "model").config.in_channels == 1
    assert "predicts: map" in (folder / "model/README.md").read_text()


# Starting weights --------------------------------------------------------------------------------------------------


def original_file(path, latent=8):
    """A small original checkpoint as the training of VA-VAE saves it, with a discriminator and a projection."""
    from radiodiff_diffusers.models.patch_discriminator import PatchDiscriminator

    tensors = original_state_dict(width=32, latent=latent)
    torch.manual_seed(3)
    discriminator = PatchDiscriminator().state_dict()
    tensors |= {f"loss.discriminator.{k}": v for k, v in discriminator.items()}
    tensors["linear_proj.weight"] = torch.randn(48, latent, 1, 1)
    torch.save({"state_dict": tensors, "global_step": 7}, path)
    return tensors


F16 = ["--multipliers", "1,1,2,2,4", "--model.channels", "32", "--norm_groups", "32"]


def test_init_from_an_original_checkpoint_takes_everything(people, tmp_path):
    tensors = original_file(tmp_path / "vavae.ckpt")
    more = [*F16, "--init_from", tmp_path / "vavae.ckpt", "--max_steps", "1", "--validation.steps", "0"]
    folder = go(people, tmp_path / "run", *more)
    start = load_file(folder / "checkpoints/step_00000000/models.safetensors")
    assert torch.equal(start["vae.encoder.conv_in.weight"], tensors["encoder.conv_in.weight"])
    assert torch.equal(start["projection.weight"], tensors["linear_proj.weight"])
    assert torch.equal(start["discriminator.main.5.weight"], tensors["loss.discriminator.main.5.weight"])
    gray = go(people, tmp_path / "gray", *more, "--data.channels", "1")
    start = load_file(gray / "checkpoints/step_00000000/models.safetensors")
    expected = tensors["encoder.conv_in.weight"].sum(1, keepdim=True)
    assert torch.allclose(start["vae.encoder.conv_in.weight"], expected)


def test_init_from_what_does_not_fit_stops(people, tmp_path):
    original_file(tmp_path / "vavae.ckpt", latent=4)
    with pytest.raises(ValueError, match="another tokenizer than the configuration asks for"):
        go(people, tmp_path / "run", *F16, "--init_from", tmp_path / "vavae.ckpt")
    with pytest.raises(ValueError, match="no such file or folder"):
        go(people, tmp_path / "run", "--init_from", tmp_path / "typo.ckpt")
    save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="unknown entries in the tokenizer"):
        go(people, tmp_path / "run", "--init_from", tmp_path / "other.safetensors")
    assert not (tmp_path / "run/checkpoints").exists()


def test_init_from_a_run(people, trained, tmp_path):
    checkpoint = trained / "checkpoints/step_00000002"
    folder = go(people, tmp_path / "run", "--init_from", checkpoint, "--max_steps", "1", "--validation.steps", "0")
    before, start = (load_file(f / "models.safetensors") for f in (checkpoint, folder / "checkpoints/step_00000000"))
    assert all(torch.equal(before[k], start[k]) for k in before)


def test_frozen_parts_do_not_move(people, trained, tmp_path):
    more = ["--freeze", "encoder,quant_conv", "--foundation", "none", "--disc_start", "1"]
    folder = go(people, tmp_path / "run", *more)
    vae = AutoencoderKL.from_pretrained(folder / "model").state_dict()
    first = AutoencoderKL.from_pretrained(trained / "model").state_dict()  # the same seed, so the same start
    moved = load_file(folder / "checkpoints/step_00000001/models.safetensors")
    assert not any(name.startswith("vae.encoder.") for name in moved)  # frozen weights are where they came from
    assert not torch.equal(vae["decoder.conv_out.weight"], moved["vae.decoder.conv_out.weight"])
    assert not torch.equal(vae["encoder.conv_in.weight"], first["encoder.conv_in.weight"])


# What must stop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--freeze", "encodr"], "does not have"),
        (["--freeze", "encoder"], "where the alignment is balanced"),
        (["--freeze", "decoder.conv_out", "--disc_start", "0"], "where the discriminator is balanced"),
        (["--horizontal_flip", "true"], "reverse or cut time"),
        (["--num_classes", "4"], "1 of 4 users have no folder"),
        (["--kind", "sounds"], "choose spectrograms or maps"),
        (["--size", "30"], "images are 30 x 30: this tokenizer needs multiples of 4"),
        (["--kind", "maps", "--data.source", "made_up_rooms", "--data.options", "{size: 30, count: 6}"], "30 x 30"),
        (["--epochs", "1", "--stages", "[{steps: 1}]"], "both given"),
        (["--foundation", "dinov3"], "unknown foundation model"),
    ],
)
def test_what_must_stop(people, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        go(people, tmp_path / "run", *more)
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_foundation_model_that_cannot_be_had(people, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", no_network)
    with pytest.raises(ValueError, match="cannot be had .*alignment.weights FILE"):
        go(people, tmp_path / "run", "--foundation", "dinov2")


def test_a_foundation_model_from_a_file(people, tmp_path):
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    more = ["--foundation", "test_vit", "--alignment.weights", tmp_path / "vit.safetensors", "--max_steps", "1"]
    folder = go(people, tmp_path / "run", *more)
    assert np.isfinite(events(folder, "train")[0]["loss/vf_loss"])


@pytest.mark.slow
def test_the_tiny_recipe_learns(tmp_path):
    folder = train(
        "va_vae", "micro_doppler_tiny", tmp_path / "run", "--data.source", tiny_people(tmp_path / "p", 4, 20, 64),
        "--max_steps", "220", "--validation.steps", "20", "--disc_start", "201",
    )  # fmt: skip
    scores = events(folder, "validation")
    # step 20 and step 200: before the discriminator comes, which costs pixels at first
    first, last = scores[0], scores[9]
    assert last["step"] == 200 and last["psnr"] > first["psnr"] + 1 and last["rec_loss"] < 0.8 * first["rec_loss"]
    assert last["vf_loss"] < 0.9 * first["vf_loss"]

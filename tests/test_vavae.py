"""Conversion of VA-VAE tokenizers: recorded numbers, every key, every form of checkpoint, and wrong ones."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from golden_weights import GOLDENS, draw, filled
from safetensors.torch import load_file, save_file

from radiodiff_diffusers.convert.vavae import (
    adapt_channels,
    load_original_checkpoint,
    set_latent_statistics,
    training_parts_from_original,
    vavae_from_file,
    vavae_from_original,
)
from radiodiff_diffusers.models.patch_discriminator import PatchDiscriminator
from radiodiff_diffusers.training.alignment import AlignmentProjection


def original_state_dict(width=32, latent=4, colours=3, decoder_attention=True):
    """Original names and shapes at a smaller width, worked out from the published table."""
    full = json.loads((GOLDENS / "vavae_manifest.json").read_text())["keys"]
    state_dict = {}
    for name, (_, shape) in full.items():
        if not decoder_attention and ".up." in name and ".attn." in name:
            continue
        small = [size * width // 128 if size >= 128 else size for size in shape]
        if name.startswith(("quant_conv", "post_quant_conv")) or "encoder.conv_out" in name:
            small[0] = shape[0] * latent // 32
        if name.startswith(("quant_conv", "post_quant_conv")) or name == "decoder.conv_in.weight":
            small[1:2] = [size * latent // 32 for size in shape[1:2]]
        if name == "encoder.conv_in.weight":
            small[1] = colours
        if name.startswith("decoder.conv_out"):
            small[0] = colours
        state_dict[name] = filled(name, small)
    return state_dict


def test_same_function_as_the_original():
    manifest = json.loads((GOLDENS / "vavae_manifest.json").read_text())["keys"]
    vae = vavae_from_original({name: filled(name, shape) for name, (_, shape) in manifest.items()})
    golden = load_file(GOLDENS / "vavae.safetensors")
    with torch.no_grad():
        posterior = vae.encode(torch.tanh(draw(601, 1, 3, 64, 96))).latent_dist
        image = vae.decode(draw(602, 1, 32, 4, 6)).sample
    for ours, name in ((posterior.mean, "mean"), (posterior.logvar, "logvar"), (image, "decode")):
        assert (ours - golden[f"f16d32.{name}"]).abs().max() < 1e-4, name
    assert sum(p.numel() for p in vae.parameters()) == 69_836_067
    assert len(vae.state_dict()) == 342 and vae.config.scaling_factor == 1.0


def test_every_key_goes_where_the_table_says():
    """A value of its own in every tensor, followed through the conversion."""
    state_dict = original_state_dict()
    for number, tensor in enumerate(state_dict.values()):
        tensor.fill_(number)
    order = list(state_dict)
    vae = vavae_from_original(state_dict).state_dict()
    rows = [line.split("\t") for line in (GOLDENS / "vavae_keymap.tsv").read_text().splitlines() if line]
    assert len(rows) == 342 == len(vae)
    for original, _, ours, _ in rows:
        assert (vae[ours] == order.index(original)).all(), original


@pytest.mark.parametrize("latent", [2, 4, 8])
def test_sizes_are_read_from_the_shapes(latent):
    vae = vavae_from_original(original_state_dict(latent=latent))
    assert vae.config.latent_channels == latent
    assert list(vae.config.block_out_channels) == [32, 32, 64, 64, 128]
    assert vae.config.layers_per_block == 2


def test_mar_variant_has_no_attention_in_the_decoder_levels():
    state_dict = original_state_dict(decoder_attention=False)
    assert len(state_dict) == 312
    vae = vavae_from_original({"model": state_dict})
    assert set(vae.config.up_block_types) == {"UpDecoderBlock2D"}
    assert vae.config.down_block_types[-1] == "AttnDownEncoderBlock2D"
    assert vae.config.mid_block_add_attention


def test_training_checkpoint(tmp_path):
    """A whole Lightning file: losses, foundation model and optimisers are passed over, parts for training found."""
    state_dict = original_state_dict()
    torch.manual_seed(0)
    discriminator, projection = PatchDiscriminator(width=8), AlignmentProjection(4, 16)
    extra = {f"loss.discriminator.{k}": v for k, v in discriminator.state_dict().items()}
    extra |= {f"linear_proj.{k}": v for k, v in projection.state_dict().items()}
    extra |= {"loss.logvar": torch.zeros(()), "foundation_model.model.norm.weight": torch.ones(8)}
    checkpoint = {
        "epoch": 49,
        "state_dict": state_dict | extra,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(5)}}}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.1)}},
    }
    path = tmp_path / "epoch=49.ckpt"
    torch.save(checkpoint, path)
    torch.save({"mean": draw(1, 1, 4, 1, 1), "std": draw(2, 1, 4, 1, 1).abs()}, tmp_path / "latents_stats.pt")
    vae = vavae_from_file(path, statistics=tmp_path / "latents_stats.pt")
    reference = vavae_from_original(state_dict)
    for (name, a), b in zip(vae.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert vae.config.latents_mean == pytest.approx(draw(1, 4).tolist())

    parts = training_parts_from_original(load_original_checkpoint(path))
    fresh, fresh_projection = PatchDiscriminator(width=8), AlignmentProjection(4, 16)
    fresh.load_state_dict(parts["discriminator"], strict=True)
    fresh_projection.load_state_dict(parts["projection"], strict=True)
    assert torch.equal(fresh.main[0].weight, discriminator.main[0].weight)
    assert torch.equal(fresh_projection.weight, projection.weight)

    save_file({f"first_stage_model.{k}": v for k, v in state_dict.items()}, tmp_path / "x.safetensors")
    again = vavae_from_file(tmp_path / "x.safetensors")
    assert torch.equal(again.decoder.conv_out.weight, vae.decoder.conv_out.weight)


def test_statistics_survive_saving(tmp_path):
    vae = vavae_from_original(original_state_dict())
    set_latent_statistics(vae, torch.arange(4.0).view(1, 4, 1, 1), torch.ones(4))
    vae.save_pretrained(tmp_path)
    assert AutoencoderKL.from_pretrained(tmp_path).config.latents_mean == [0.0, 1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="3 and 3 channels for a tokenizer of 4"):
        set_latent_statistics(vae, [0] * 3, [1] * 3)
    with pytest.raises(ValueError, match="standard deviation of 0"):
        set_latent_statistics(vae, [0] * 4, [1, 1, 0, 1])


def test_gray_from_colour_and_back():
    colour = vavae_from_original(original_state_dict())
    gray = vavae_from_original(original_state_dict(), channels=1)
    assert gray.config.in_channels == gray.config.out_channels == 1
    image, latent = torch.tanh(draw(5, 1, 1, 32, 48)), draw(6, 1, 4, 2, 3)
    with torch.no_grad():
        expected = colour.encode(image.expand(-1, 3, -1, -1)).latent_dist.mean
        assert (gray.encode(image).latent_dist.mean - expected).abs().max() < 1e-4
        expected = colour.decode(latent).sample.mean(1, keepdim=True)
        assert (gray.decode(latent).sample - expected).abs().max() < 1e-4
        back = adapt_channels(gray, 3)
        assert (back.decode(latent).sample - gray.decode(latent).sample).abs().max() < 1e-4
    with pytest.raises(ValueError, match="from 3 to 2 channels"):
        adapt_channels(colour, 2)


def test_wrong_checkpoints_get_one_line(tmp_path):
    good = original_state_dict()

    def without(name):
        return {k: v for k, v in good.items() if k != name}

    with pytest.raises(ValueError, match="missing .'encoder.down_blocks.4.attentions.1.to_q.weight'"):
        vavae_from_original(without("encoder.down.4.attn.1.q.weight"))
    with pytest.raises(ValueError, match="encoder.conv_in.weight is missing"):
        vavae_from_original(without("encoder.conv_in.weight"))
    with pytest.raises(ValueError, match="unknown entries in the tokenizer's state dict: quantize.embedding"):
        vavae_from_original(good | {"quantize.embedding": torch.zeros(1)})
    with pytest.raises(ValueError, match="encoder.mid_block.resnets.0.conv1.weight has the shape"):
        vavae_from_original(good | {"encoder.mid.block_1.conv1.weight": torch.zeros(64, 128, 3, 3)})
    with pytest.raises(ValueError, match="not a VA-VAE state dict"):
        vavae_from_original({})
    with pytest.raises(ValueError, match="no such file"):
        load_original_checkpoint(tmp_path / "missing.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ValueError, match="broken.ckpt cannot be read as a checkpoint"):
        load_original_checkpoint(tmp_path / "broken.ckpt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        load_original_checkpoint(tmp_path / "list.pt")
    torch.save({"code": Path("x")}, tmp_path / "code.pt")  # an object, which weights_only refuses
    with pytest.raises(ValueError, match="code.pt cannot be read"):
        load_original_checkpoint(tmp_path / "code.pt")


@pytest.mark.parametrize(("attention", "keys"), [(True, 342), (False, 312)])
def test_converted_on_the_command_line(tmp_path, attention, keys, monkeypatch):
    """f16d32 and MAR's variant as a training run leaves them, in colour and brought to gray."""
    from radiodiff_diffusers.cli import main

    # diffusers warns of casts to another type, and there is none to make
    monkeypatch.setattr("diffusers.models.modeling_utils.logger.warning", pytest.fail)
    state_dict = original_state_dict(decoder_attention=attention)
    assert len(state_dict) == keys
    others = {"linear_proj.weight": torch.zeros(8, 4, 1, 1), "foundation_model.model.norm.weight": torch.zeros(8)}
    torch.save({"state_dict": state_dict | others, "global_step": 3}, tmp_path / "vae.ckpt")
    for channels in (3, 1):
        more = ["--image-channels", "1"] if channels == 1 else []
        assert main(["convert", str(tmp_path / "vae.ckpt"), str(tmp_path / f"vae_{channels}"), *more]) == 0
        vae = AutoencoderKL.from_pretrained(tmp_path / f"vae_{channels}")
        assert vae.config.in_channels == channels and len(vae.state_dict()) == keys


def test_discriminator_of_the_published_size():
    discriminator = PatchDiscriminator()
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_633 - 0
    assert discriminator(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    names = {name.rsplit(".", 1)[0] for name, _ in discriminator.named_parameters()}
    assert names == {f"main.{i}" for i in (0, 2, 3, 5, 6, 8, 9, 11)}

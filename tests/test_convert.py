"""Original RadioDiff checkpoints: recorded numbers of the autoencoder, every form of file, every key, wrong files."""

import pickle

import pytest
import torch
from golden_weights import GOLDENS, draw, golden_state_dict
from safetensors.torch import load_file

from radiodiff_diffusers import convert
from radiodiff_diffusers.convert.radiodiff import read_original
from radiodiff_diffusers.convert.radiodiff_config import read_original_config
from radiodiff_diffusers.models import RadioDiffUNet2DModel

FIVE = ["buildings", "transmitter", "cars", "k2", "k2"]
SMALL_SWIN = {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}


def small_unet(sample_size=16, **config):
    torch.manual_seed(0)
    unet = RadioDiffUNet2DModel(
        sample_size=sample_size, base_channels=16, condition_encoder_config=SMALL_SWIN, attention_head_dim=8, **config
    )
    with torch.no_grad():  # running statistics a conversion could lose without anyone noticing
        for name, buffer in unet.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape))
    return unet.eval()


@pytest.fixture(scope="module")
def unet_tensors():
    return convert.unet_to_original(small_unet())


@pytest.fixture(scope="module")
def vae_tensors():
    """A small autoencoder of the original: two levels of 32 and 64 channels, latents of 3, and its loss's entries."""
    shapes = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def block(name, inner, outer):
        layer(f"{name}.norm1", inner), layer(f"{name}.conv1", outer, inner, 3, 3)
        layer(f"{name}.norm2", outer), layer(f"{name}.conv2", outer, outer, 3, 3)
        if inner != outer:
            layer(f"{name}.nin_shortcut", outer, inner, 1, 1)

    layer("encoder.conv_in", 32, 1, 3, 3), layer("encoder.conv_out", 6, 64, 3, 3), layer("encoder.norm_out", 64)
    layer("decoder.conv_in", 64, 3, 3, 3), layer("decoder.conv_out", 1, 32, 3, 3), layer("decoder.norm_out", 32)
    layer("quant_conv", 6, 6, 1, 1), layer("post_quant_conv", 3, 3, 1, 1)
    block("encoder.down.0.block.0", 32, 32), block("encoder.down.1.block.0", 32, 64)
    block("decoder.up.1.block.0", 64, 64), block("decoder.up.1.block.1", 64, 64)
    block("decoder.up.0.block.0", 64, 32), block("decoder.up.0.block.1", 32, 32)
    layer("encoder.down.0.downsample.conv", 32, 32, 3, 3), layer("decoder.up.1.upsample.conv", 64, 64, 3, 3)
    for side in ("encoder", "decoder"):
        (
            block(f"{side}.mid.block_1", 64, 64),
            block(f"{side}.mid.block_2", 64, 64),
            layer(f"{side}.mid.attn_1.norm", 64),
        )
        for name in ("q", "k", "v", "proj_out"):
            layer(f"{side}.mid.attn_1.{name}", 64, 64, 1, 1)
    generator = torch.Generator().manual_seed(1)
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 1, 4, 4)}


@pytest.fixture(scope="module")
def latent_diffusion(unet_tensors, vae_tensors):
    """The state dict of the original's latent diffusion model."""
    tensors = {f"model.{name}": tensor for name, tensor in unet_tensors.items()}
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in vae_tensors.items()}
    tensors |= {name: torch.ones(10) for name in ("betas", "alphas_cumprod", "posterior_mean_coef1", "p2_loss_weight")}
    return tensors | {"scale_factor": torch.tensor(0.25)}


def same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def golden_vae():
    return convert.vae_from_original(golden_state_dict("vae"))


def test_autoencoder_gives_the_recorded_numbers(golden_vae):
    goldens = load_file(GOLDENS / "vae.safetensors")
    with torch.no_grad():
        posterior = golden_vae.encode(torch.tanh(draw(301, 1, 1, 128, 160))).latent_dist
        decoded = golden_vae.decode(draw(302, 1, 3, 32, 40)).sample
    torch.testing.assert_close(posterior.mean, goldens["encode.mean"], atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.logvar, goldens["encode.logvar"], atol=1e-4, rtol=0)
    torch.testing.assert_close(posterior.kl().flatten(), goldens["kl"].flatten(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(decoded, goldens["decode"], atol=1e-4, rtol=0)
    config = golden_vae.config
    assert (config.in_channels, config.latent_channels, config.scaling_factor) == (1, 3, 0.3)
    assert list(config.block_out_channels) == [128, 256, 512] and config.layers_per_block == 2


@pytest.mark.parametrize("channels, config", [(3, {}), (5, {"condition_adapter": True})])
@pytest.mark.parametrize("sample_size", [16, [24, 48]])
def test_unet_survives_the_way_out_and_back(channels, config, sample_size):
    names = FIVE if channels == 5 else None
    unet = small_unet(sample_size, **({"condition_channels": names} if names else {}), **config)
    tensors = convert.unet_to_original(unet)
    back = convert.unet_from_original(tensors, condition_channels=names)
    assert same_weights(unet, back)
    assert back.config.sample_size == (sample_size if isinstance(sample_size, int) else [24, 48])
    assert back.config.condition_encoder_config == SMALL_SWIN
    assert list(back.config.condition_channels) == list(unet.config.condition_channels)
    again = convert.unet_to_original(back)
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_channels_choose_the_five_to_three_convolution(unet_tensors):
    tensors = unet_tensors | {"init_conv_carK.weight": draw(1, 3, 5, 1, 1), "init_conv_carK.bias": draw(2, 3)}
    three, five = convert.unet_from_original(tensors), convert.unet_from_original(tensors, condition_channels=FIVE)
    assert three.adapter is None
    x, t, condition = draw(3, 1, 3, 16, 16), torch.tensor([0.5]), draw(4, 1, 5, 64, 64)
    mixed = torch.nn.functional.conv2d(condition, tensors["init_conv_carK.weight"], tensors["init_conv_carK.bias"])
    with torch.no_grad():
        torch.testing.assert_close(five(x, t, condition).sample, three(x, t, mixed).sample)
    with pytest.raises(ValueError, match="takes 3 or 5"):
        convert.unet_from_original(tensors, condition_channels=FIVE[:4])


@pytest.mark.parametrize("encoder", ["resnet", "effnet", "vgg"])
def test_other_encoders_have_a_complete_table_of_names(encoder):
    with torch.device("meta"):
        unet = RadioDiffUNet2DModel(base_channels=16, condition_encoder=encoder)
    from radiodiff_diffusers.convert.radiodiff_keys import original_name, read_unet_config

    names = [original_name(name, encoder) for name in unet.state_dict()]
    assert len(set(names)) == len(names)
    ours = set(unet.state_dict())
    assert not [n for n in names if n in ours and not n.startswith(("init_conv", "projects"))]
    config = read_unet_config(dict(zip(names, unet.state_dict().values(), strict=True)))
    assert (config["condition_encoder"], config["base_channels"], config["sample_size"]) == (encoder, 16, 64)


def wrapped_forms(ldm, unet, vae):
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in ldm.items()}
    ema = {f"ema_model.{n}": t for n, t in ldm.items()} | {f"online_model.{n}": t for n, t in other.items()}
    ema |= {"initted": torch.tensor([1.0]), "step": torch.tensor([9])}
    return {
        "trainer": {"step": 7, "model": other, "opt": {"state": {}}, "ema": ema, "scaler": None, "lr_scheduler": {}},
        "without EMA": {"model": ldm},
        "data parallel": {"model": {f"module.{n}": t for n, t in ldm.items()}},
        "EMA of data parallel": {"model": other, "ema": {f"ema_model.module.{n}": t for n, t in ldm.items()}},
        "bare": ldm,
        "state_dict": {"state_dict": ldm},
    }


@pytest.mark.parametrize(
    "form", ["trainer", "without EMA", "data parallel", "EMA of data parallel", "bare", "state_dict"]
)
def test_every_form_of_checkpoint(tmp_path, latent_diffusion, unet_tensors, vae_tensors, form):
    checkpoint = wrapped_forms(latent_diffusion, unet_tensors, vae_tensors)[form]
    torch.save(checkpoint, tmp_path / "model-1.pt")
    pipe = convert.pipeline_from_original(tmp_path / "model-1.pt")
    assert same_weights(pipe.unet, convert.unet_from_original(unet_tensors))
    assert same_weights(pipe.vae, convert.vae_from_original(vae_tensors))
    assert pipe.vae.config.scaling_factor == 0.25
    assert list(pipe.vae.config.block_out_channels) == [32, 64] and pipe.vae.config.layers_per_block == 1


def test_trained_weights_on_request(tmp_path, latent_diffusion, unet_tensors, vae_tensors):
    torch.save(wrapped_forms(latent_diffusion, unet_tensors, vae_tensors)["trainer"], tmp_path / "m.pt")
    averaged, trained = (read_original(tmp_path / "m.pt", use_ema=ema) for ema in (True, False))
    assert averaged.averaged and not trained.averaged
    name = "final_conv.bias"
    torch.testing.assert_close(trained.unet[name], averaged.unet[name] + 1)


def test_autoencoder_files_of_their_own(tmp_path, unet_tensors, vae_tensors):
    expected = convert.vae_from_original(vae_tensors)
    ema = {f"ema_model.{name}": tensor for name, tensor in vae_tensors.items()}
    assert same_weights(convert.vae_from_original({"model": {}, "ema": ema}), expected)
    assert expected.config.scaling_factor == 0.3
    torch.save({"model": vae_tensors}, tmp_path / "vae.pt")
    torch.save({"model": {f"model.{n}": t for n, t in unet_tensors.items()}}, tmp_path / "unet.pt")
    with pytest.raises(ValueError, match="pass the autoencoder's file"):
        convert.pipeline_from_original(tmp_path / "unet.pt")
    with pytest.raises(ValueError, match="no U-Net"):
        convert.pipeline_from_original(tmp_path / "vae.pt")
    pipe = convert.pipeline_from_original(tmp_path / "unet.pt", vae=tmp_path / "vae.pt")
    assert same_weights(pipe.vae, expected)


def test_latents_wider_than_the_encoder(vae_tensors):
    """z of 2 channels in latents of 3, as one of the original's files has it: the same function after the widening."""
    tensors = {name: tensor for name, tensor in vae_tensors.items() if not name.startswith("loss.")}
    tensors |= {"encoder.conv_out.weight": draw(1, 4, 64, 3, 3) / 9, "encoder.conv_out.bias": draw(2, 4)}
    tensors |= {"quant_conv.weight": draw(3, 6, 4, 1, 1), "post_quant_conv.weight": draw(4, 2, 3, 1, 1)}
    tensors |= {"post_quant_conv.bias": draw(5, 2), "decoder.conv_in.weight": draw(6, 64, 2, 3, 3) / 9}
    vae = convert.vae_from_original(tensors)
    assert vae.config.latent_channels == 3
    seen = {}
    vae.decoder.conv_in.register_forward_hook(lambda module, inputs, output: seen.update(decoder=output))
    vae.encoder.conv_norm_out.register_forward_hook(lambda module, inputs, output: seen.update(encoder=output))
    conv = torch.nn.functional.conv2d
    z, image = draw(7, 1, 3, 6, 5), draw(8, 1, 1, 8, 8)
    with torch.no_grad():
        vae.decode(z)
        inner = conv(z, tensors["post_quant_conv.weight"], tensors["post_quant_conv.bias"])
        expected = conv(inner, tensors["decoder.conv_in.weight"], tensors["decoder.conv_in.bias"], padding=1)
        torch.testing.assert_close(seen["decoder"], expected)
        mean = vae.encode(image).latent_dist.mean
        hidden = torch.nn.functional.silu(seen["encoder"])
        moments = conv(hidden, tensors["encoder.conv_out.weight"], tensors["encoder.conv_out.bias"], padding=1)
        moments = conv(moments, tensors["quant_conv.weight"], tensors["quant_conv.bias"])
        torch.testing.assert_close(mean, moments[:, :3])


@pytest.mark.parametrize(
    "name", ["final_conv.bias", "downs.0.2.fn.norm.g", "init_conv_mask.features.2.1.attn.qkv.bias"]
)
def test_a_missing_tensor_is_named(unet_tensors, name):
    with pytest.raises(ValueError, match=f"missing: {name}"):
        convert.unet_from_original({k: v for k, v in unet_tensors.items() if k != name})


def test_unknown_tensors_are_named(unet_tensors, vae_tensors, latent_diffusion):
    with pytest.raises(ValueError, match="unknown: downs.0.9.weight"):
        convert.unet_from_original(unet_tensors | {"downs.0.9.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="unknown entries beside U-Net and autoencoder: cond_stage_model.weight"):
        convert.unet_from_original(latent_diffusion | {"cond_stage_model.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="unknown: decoder.extra.weight"):
        convert.vae_from_original(vae_tensors | {"decoder.extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="missing: encoder.mid.block_1.conv2.bias"):
        convert.vae_from_original({k: v for k, v in vae_tensors.items() if k != "encoder.mid.block_1.conv2.bias"})


def test_a_wrong_shape_is_named(unet_tensors):
    with pytest.raises(ValueError, match="final_conv2.weight has shape"):
        convert.unet_from_original(unet_tensors | {"final_conv2.weight": torch.zeros(2, 16, 1, 1)})


def test_dead_tensors_may_be_absent_and_come_back_neutral(unet_tensors):
    dead = [name for name in unet_tensors if ".head." in name or "init_conv_carK" in name or "_mask.norm" in name]
    assert dead
    unet = convert.unet_from_original({k: v for k, v in unet_tensors.items() if k not in dead})
    del unet.original_dead_tensors  # as after a save and a load
    back = convert.unet_to_original(unet)
    assert back.keys() == unet_tensors.keys()
    assert all(back[name].shape == unet_tensors[name].shape for name in dead)


def test_models_the_original_cannot_hold_are_refused():
    from radiodiff_diffusers.models import RADIODIFF_UNET_PRESETS

    with pytest.raises(ValueError, match="no U-Net like this one"):
        convert.unet_to_original(RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"]))


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_are_no_checkpoint(tmp_path, unet_tensors, capsys):
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError) as harmful:
        read_original(path)
    assert "executed" not in capsys.readouterr().out
    torch.save({"model": {"init_conv.0.weight": "text"}}, path)
    with pytest.raises(ValueError) as text:
        read_original(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError) as listed:
        read_original(path)
    torch.save(unet_tensors, path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError) as truncated:
        read_original(path)
    with pytest.raises(ValueError) as absent:
        read_original(tmp_path / "absent.pt")
    path.write_bytes(b"junk")
    with pytest.raises(ValueError) as junk:
        read_original(path)
    with pytest.raises(ValueError, match="is a folder") as folder:
        read_original(tmp_path)
    torch.save({}, path)
    with pytest.raises(ValueError, match="an empty one") as empty:
        read_original(path)
    torch.save({"some.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="some.weight") as foreign:
        read_original(path)
    assert "weights_only" not in str(harmful.value)
    for error in (harmful, text, listed, truncated, absent, junk, folder, empty, foreign):
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


YAML = """
model:
  model_type: const_sde
  model_name: cond_unet
  sampling_timesteps: 3
  objective: pred_noise
  scale_factor: 0.18215
  eps: !!float 1e-3
  timesteps: 1000
  unet:
    dim: 16
    cond_net: swin
    channels: 3
    dim_mults: [ 1, 2, 4, 4, ]
    window_sizes1: [ [4, 4], [2, 2], [1, 1], [1, 1] ]
    window_sizes2: [ [4, 4], [2, 2], [1, 1], [1, 1] ]
    fourier_scale: 8
data:
  name: DPMCAR
"""


@torch.no_grad()
def test_k2_models_of_the_original_are_fed_the_range_they_were_trained_with(tmp_path, unet_tensors, vae_tensors):
    """Its k2 loaders give gray levels 0..255 to Normalize(0.5, 0.5), and k2 as 0..1: -1..509 and -1..1."""
    torch.save({f"model.{n}": t for n, t in unet_tensors.items()}, tmp_path / "unet.pt")
    torch.save(vae_tensors, tmp_path / "vae.pt")
    files = {"path": tmp_path / "unet.pt", "vae": tmp_path / "vae.pt"}
    loaded = {}
    for name in ("DPMCAR", "DPMK"):
        (tmp_path / "sample.yaml").write_text(YAML.replace("DPMCAR", name))
        pipe = convert.pipeline_from_original(**files, config=tmp_path / "sample.yaml")
        pipe.save_pretrained(tmp_path / name)
        loaded[name] = RadioDiffUNet2DModel.from_pretrained(tmp_path / name, subfolder="unet")
    assert loaded["DPMCAR"].config.condition_ranges is None
    assert loaded["DPMK"].config.condition_ranges == [[-1, 509], [-1, 509], [-1, 1]]
    named = convert.pipeline_from_original(**files, condition_channels=["buildings", "transmitter", "k2"])
    assert named.unet.config.condition_ranges == loaded["DPMK"].config.condition_ranges

    gray = torch.randint(0, 256, (1, 2, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    k2 = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(1))
    theirs = (torch.cat([gray, k2], 1) - 0.5) / 0.5
    ours = torch.cat([gray / 255, k2], 1) * 2 - 1
    for unranged, ranged in zip(
        loaded["DPMCAR"].encode_condition(theirs), loaded["DPMK"].encode_condition(ours), strict=True
    ):
        torch.testing.assert_close(ranged, unranged, atol=1e-3, rtol=1e-3)
    unstretched = loaded["DPMCAR"].encode_condition(ours)[0]
    assert not torch.allclose(loaded["DPMK"].encode_condition(ours)[0], unstretched, atol=1e-2)
    for wrong in ([[-1, 1]], [[-1, 1], [1, -1], [0, 1]], [[0, 1, 2]] * 3):
        with pytest.raises(ValueError, match="condition_ranges needs"):
            small_unet(condition_ranges=wrong)


def test_original_yaml_files(tmp_path, unet_tensors, vae_tensors):
    (tmp_path / "sample.yaml").write_text(YAML)
    config = read_original_config(tmp_path / "sample.yaml")
    assert config.condition_channels == ["buildings", "transmitter", "cars"]
    torch.save({f"model.{n}": t for n, t in unet_tensors.items()}, tmp_path / "unet.pt")
    torch.save(vae_tensors, tmp_path / "vae.pt")
    pipe = convert.pipeline_from_original(
        tmp_path / "unet.pt", vae=tmp_path / "vae.pt", config=tmp_path / "sample.yaml"
    )
    assert list(pipe.unet.config.window_sizes) == [4, 2, 1, 1] and pipe.unet.down_blocks[0].relation.window_size == 4
    assert pipe.scheduler.config.eps == 1e-3 and pipe.scheduler.config.prediction_type == "pred_KC"
    assert pipe.vae.config.scaling_factor == 0.18215 and pipe.config.num_inference_steps == 3
    for change, message in (
        (("dim: 16", "dim: 32"), "says base_channels is 32"),
        (("cond_unet", "ncsnpp9"), "only 'cond_unet'"),
        (("window_sizes2: [ [4", "window_sizes2: [ [8"), "must be equal and square"),
        (("model:", "other:"), "no section 'model'"),
        (("[ [4", "[ [4 ]]"), "cannot be read as a YAML file"),
    ):
        (tmp_path / "wrong.yaml").write_text(YAML.replace(*change))
        with pytest.raises(ValueError, match=message):
            convert.pipeline_from_original(
                tmp_path / "unet.pt", vae=tmp_path / "vae.pt", config=tmp_path / "wrong.yaml"
            )


def test_command_line(tmp_path, latent_diffusion, unet_tensors, vae_tensors, capsys):
    from radiodiff_diffusers.cli import main
    from radiodiff_diffusers.pipelines import RadioDiffPipeline

    torch.save({"model": latent_diffusion}, tmp_path / "model.pt")
    assert main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "pipe")]) == 0
    pipe = RadioDiffPipeline.from_pretrained(tmp_path / "pipe")
    assert same_weights(pipe.unet, convert.unet_from_original(unet_tensors))
    assert main(["convert", str(tmp_path / "pipe"), str(tmp_path / "back.pt"), "--to-original"]) == 0
    back = read_original(tmp_path / "back.pt").unet
    assert back.keys() == unet_tensors.keys()
    torch.save({"model": vae_tensors}, tmp_path / "vae.pt")
    assert main(["convert", str(tmp_path / "vae.pt"), str(tmp_path / "vae")]) == 0
    assert (tmp_path / "vae" / "config.json").exists()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "else.pt")
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "else.pt"), str(tmp_path / "x")]) == 2
    assert "none of the originals" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "gone"), str(tmp_path / "x.pt"), "--to-original"]) == 2
    assert "gone: no such folder" in capsys.readouterr().err

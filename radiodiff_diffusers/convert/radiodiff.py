"""Load RadioDiff's original checkpoints, and write ours back in its format."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .radiodiff_keys import is_dead, original_name, read_unet_config
from .vavae import load_original_checkpoint, vavae_from_original

logger = logging.getLogger(__name__)

THREE_CHANNELS = ["buildings", "transmitter", "buildings"]
DEFAULT_SCALING_FACTOR = 0.3

# what the original's latent diffusion model keeps beside its two networks
_SCHEDULE = re.compile(
    r"^(betas|alphas_cumprod(_prev)?|sqrt_.*|log_one_minus_alphas_cumprod|posterior_.*|p2_loss_weight|lvlb_weights"
    r"|scale_factor|scale_bias|logvar|perceptual_loss\..*)$"
)
_UNET, _VAE, _SCALE = "model.", "first_stage_model.", "scale_factor"
_VAE_MODULES = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss.")
# what a trainer's file may hold beside the weights
_WEIGHTS = ("ema", "model", "state_dict")


@dataclass
class OriginalCheckpoint:
    """The tensors of one file of the original, sorted: either part may be empty."""

    unet: dict[str, torch.Tensor]
    vae: dict[str, torch.Tensor]
    scaling_factor: float | None = None
    averaged: bool = False


def read_original(path: str | Path, use_ema: bool = True) -> OriginalCheckpoint:
    """Read a file of the original's trainers, without executing anything in it."""
    try:
        return sort_checkpoint(load_original_checkpoint(path), use_ema)
    except (ValueError, OSError) as error:  # OSError: the file was cut off while it was written
        raise ValueError(str(error) if str(path) in str(error) else f"{path} cannot be converted: {error}") from None


def sort_checkpoint(checkpoint: Mapping[str, Any], use_ema: bool = True) -> OriginalCheckpoint:
    """Find U-Net and autoencoder in what a checkpoint holds, whatever it is wrapped in; every entry must be known."""
    tensors, averaged = _weights(checkpoint, use_ema)
    parts = OriginalCheckpoint({}, {}, averaged=averaged)
    # a U-Net's file of its own may carry a prefix, a latent diffusion model's always does
    whole = any(name.startswith((_VAE, _UNET + "init_conv")) for name in tensors)
    unknown = []
    for name, tensor in tensors.items():
        if whole and name == _SCALE:
            parts.scaling_factor = float(tensor)
        elif whole and _SCHEDULE.match(name):
            continue
        elif name.startswith(_VAE):
            parts.vae[name.removeprefix(_VAE)] = tensor
        elif whole:
            if name.startswith(_UNET):
                parts.unet[name.removeprefix(_UNET)] = tensor
            else:
                unknown.append(name)
        elif name.removeprefix(_UNET).startswith(_VAE_MODULES):
            parts.vae[name.removeprefix(_UNET)] = tensor
        else:
            parts.unet[name] = tensor
    if unknown:
        raise ValueError(f"unknown entries beside U-Net and autoencoder: {_some(unknown)}.")
    if parts.unet and not any(name.startswith("init_conv") for name in parts.unet):
        raise ValueError(f"this is no checkpoint of RadioDiff: unknown entries {_some(parts.unet)}.")
    return parts


def _weights(checkpoint: Mapping[str, Any], use_ema: bool) -> tuple[dict[str, torch.Tensor], bool]:
    """The one state dict to convert, without the wrappers' prefixes, and whether it is the averaged one."""
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        given = "an empty one" if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise ValueError(f"expected a dictionary of tensors, got {given}.")
    held = [key for key in _WEIGHTS if isinstance(checkpoint.get(key), Mapping) and checkpoint[key]]
    averaged = "ema" in held and (use_ema or held == ["ema"])
    if held:
        tensors = checkpoint["ema" if averaged else next(key for key in held if key != "ema")]
        if use_ema and not averaged:
            logger.info("the checkpoint has no averaged weights (ema); taking the trained ones")
    else:
        tensors = checkpoint
    tensors = {_unwrapped(name): value for name, value in tensors.items()}
    if any(name.startswith("ema_model.") for name in tensors):
        averaged = use_ema or not any(name.startswith("online_model.") for name in tensors)
        prefix = "ema_model." if averaged else "online_model."
        tensors = {_unwrapped(n.removeprefix(prefix)): value for n, value in tensors.items() if n.startswith(prefix)}
    strange = [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ValueError(f"this is no state dict: entries that are no tensors, {_some(strange)}.")
    return tensors, averaged


def _unwrapped(name: str) -> str:
    return re.sub(r"^(module\.|_orig_mod\.)+", "", str(name))


def _some(names) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def unet_from_original(state_dict: Mapping[str, Any], condition_channels: list[str] | None = None, **config):
    """
    Make a [`RadioDiffUNet2DModel`] with the weights of an original U-Net.

    Args:
        state_dict: The original's tensors by name: the U-Net's alone, those of its latent diffusion model, or a whole
            training checkpoint, of which the averaged weights are taken.
        condition_channels: Names of the condition's planes, `["buildings", "transmitter", "buildings"]` by default.
            As many names as the original's `init_conv_carK` has inputs (five) switch that convolution on.
        config: Further arguments of the model that no shape shows: `window_sizes`, `fourier_scale`,
            `condition_ranges`.

    Every size is read from the shapes. An entry that is unknown or missing is named in a `ValueError`.
    """
    from ..models.radiodiff_unet import RadioDiffUNet2DModel

    tensors = sort_checkpoint(state_dict).unet
    if not tensors:
        raise ValueError("there is no U-Net in this state dict; an autoencoder's file is for vae_from_original.")
    names = list(condition_channels or THREE_CHANNELS)
    sizes = read_unet_config(tensors)
    adapter = _needs_adapter(tensors, names)
    with torch.device("meta"):  # every tensor is about to be overwritten: drawing first ones would take seconds
        unet = RadioDiffUNet2DModel(**sizes, condition_channels=names, condition_adapter=adapter, **config)
    unet.to_empty(device="cpu")

    encoder = sizes["condition_encoder"]
    expected = {original_name(name, encoder): (name, tensor.shape) for name, tensor in unet.state_dict().items()}
    dead = {name: tensor for name, tensor in tensors.items() if is_dead(name, encoder, adapter)}
    _account(expected, tensors.keys() - dead.keys())

    converted = {}
    for theirs, (name, shape) in expected.items():
        tensor = tensors[theirs]
        if theirs.endswith(".g"):  # a gain of one value a channel, stored with empty dimensions
            tensor = tensor.flatten()
        if tensor.shape != shape:
            raise ValueError(f"{theirs} has shape {list(tensor.shape)}, expected {list(shape)}.")
        converted[name] = tensor
    unet.load_state_dict(converted, strict=True)
    # kept for unet_to_original in the same session; they do nothing and are not saved with the model
    unet.original_dead_tensors = dead
    if dead:
        logger.info("left out, because the original never uses them: %s", _some(dead))
    return unet.eval()


def _needs_adapter(tensors, names: list[str]) -> bool:
    if len(names) == 3:
        return False
    weight = tensors.get("init_conv_carK.weight")
    if weight is None or weight.shape[1] != len(names):
        takes = "3" if weight is None else f"3 or {weight.shape[1]}"
        raise ValueError(
            f"condition_channels has {len(names)} names ({', '.join(names)}); this checkpoint takes {takes}."
        )
    return True


def _account(expected, given) -> None:
    unknown, missing = given - expected.keys(), expected.keys() - given
    if unknown or missing:
        found = [f"{word}: {_some(names)}" for word, names in (("unknown", unknown), ("missing", missing)) if names]
        raise ValueError(f"the state dict does not fit, {'; '.join(found)}.")


@torch.no_grad()
def unet_to_original(unet) -> dict[str, torch.Tensor]:
    """
    The weights of a [`RadioDiffUNet2DModel`] under the original's names, complete, so that its code loads them
    strictly. Tensors the original never uses are the converted file's own if the model was converted in this session,
    and neutral values else.
    """
    config = unet.config
    if config.condition_encoder == "conv" or config.patch_size != 1 or config.relation_norm != "batch":
        raise ValueError(
            "the original has no U-Net like this one: it knows the encoders swin, resnet, effnet and vgg,"
            " patch_size 1 and relation_norm 'batch'."
        )
    if not config.condition_adapter and len(config.condition_channels) != 3:
        raise ValueError(
            f"the original takes three condition planes, or five through a convolution; this model takes"
            f" {len(config.condition_channels)} directly."
        )
    if any(".lora_" in name or ".base_layer." in name for name, _ in unet.named_parameters()):
        raise ValueError("fuse and unload the LoRA adapters first (fuse_lora, unload_lora_weights).")
    tensors = {}
    for name, tensor in unet.state_dict().items():
        theirs = original_name(name, config.condition_encoder)
        if theirs.endswith(".g"):
            tensor = tensor[None, :, None, None]
        tensors[theirs] = tensor.detach().cpu().clone()
    dead = getattr(unet, "original_dead_tensors", None) or _neutral_dead_tensors(unet)
    return tensors | {name: tensor.cpu().clone() for name, tensor in dead.items() if name not in tensors}


def _neutral_dead_tensors(unet) -> dict[str, torch.Tensor]:
    dead = {}

    def layer(name, *shape):
        dead[f"init_conv_mask.{name}.weight"] = torch.zeros(shape)
        dead[f"init_conv_mask.{name}.bias"] = torch.zeros(shape[0])

    if not unet.config.condition_adapter:
        dead["init_conv_carK.weight"], dead["init_conv_carK.bias"] = torch.zeros(3, 5, 1, 1), torch.zeros(3)
    if unet.config.condition_encoder == "swin":
        width = unet.encoder.out_channels[-1]
        layer("norm", width)
        dead["init_conv_mask.norm.weight"].fill_(1)
        layer("head", 1000, width)
        for stage, blocks in enumerate(unet.encoder.stages):
            for index, block in enumerate(blocks):
                name = f"init_conv_mask.features.{2 * stage}.{index}.attn.relative_position_index"
                dead[name] = block.attn.relative_position_index().flatten().cpu()
    elif unet.config.condition_encoder == "vgg":
        layer("classifier.0", 4096, 512 * 7 * 7)
        layer("classifier.3", 4096, 4096)
        layer("classifier.6", 1000, 4096)
    elif unet.config.condition_encoder == "effnet":
        dead["init_conv_mask.features.7.0.weight"] = torch.zeros(2560, 640, 1, 1)
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            dead[f"init_conv_mask.features.7.1.{name}"] = torch.full((2560,), value)
        dead["init_conv_mask.features.7.1.num_batches_tracked"] = torch.tensor(0)
    return dead


def vae_from_original(state_dict: Mapping[str, Any], scaling_factor: float | None = None, sample_size: int = 256):
    """
    Make diffusers' `AutoencoderKL` with the weights of the original's autoencoder.

    Args:
        state_dict: The original's tensors by name: the autoencoder's alone, those of a latent diffusion model
            (`first_stage_model.*`), or a whole training checkpoint. Entries of its losses are left out.
        scaling_factor: Factor between latents and what the U-Net sees; the checkpoint's by default, 0.3 without one.
        sample_size: Side of the images it was trained on, for diffusers' tiling.
    """
    parts = sort_checkpoint(state_dict)
    if not parts.vae:
        raise ValueError("there is no autoencoder in this state dict.")
    if scaling_factor is None:
        scaling_factor = DEFAULT_SCALING_FACTOR if parts.scaling_factor is None else parts.scaling_factor
    tensors = {name: tensor for name, tensor in parts.vae.items() if not name.startswith("loss.")}
    _account_vae(tensors)
    vae = vavae_from_original(_with_square_latents(tensors))
    vae.register_to_config(scaling_factor=scaling_factor, sample_size=sample_size)
    return vae


# what every autoencoder of the original has, whatever its sizes
_VAE_ENDS = [
    f"{module}.{kind}"
    for module in ("encoder.conv_in", "encoder.norm_out", "encoder.conv_out", "decoder.conv_in", "decoder.norm_out")
    + ("decoder.conv_out", "quant_conv", "post_quant_conv")
    for kind in ("weight", "bias")
]


def _account_vae(tensors: dict[str, torch.Tensor]) -> None:
    """Every tensor of the original's autoencoder by name, given how many levels and blocks it has."""

    def count(pattern):
        return 1 + max((int(m[1]) for m in (re.match(pattern, name) for name in tensors) if m), default=-1)

    levels, blocks = count(r"encoder\.down\.(\d+)\."), count(r"encoder\.down\.\d+\.block\.(\d+)\.")
    layers = []
    for side, path, repeats in (("encoder", "down", blocks), ("decoder", "up", blocks + 1)):
        prefixes = [f"{side}.{path}.{level}.block.{block}" for level in range(levels) for block in range(repeats)]
        prefixes += [f"{side}.mid.block_1", f"{side}.mid.block_2"]
        for prefix in prefixes:
            layers += [f"{prefix}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")]
            conv1 = tensors.get(f"{prefix}.conv1.weight")
            if conv1 is not None and conv1.shape[0] != conv1.shape[1]:
                layers.append(f"{prefix}.nin_shortcut")
        attention = {name.rsplit(".", 2)[0] for name in tensors if re.match(rf"{side}\.{path}\.\d+\.attn\.", name)}
        for prefix in [f"{side}.mid.attn_1", *attention]:
            layers += [f"{prefix}.{name}" for name in ("norm", "q", "k", "v", "proj_out")]
    layers += [f"encoder.down.{level}.downsample.conv" for level in range(levels - 1)]
    layers += [f"decoder.up.{level}.upsample.conv" for level in range(1, levels)]
    expected = _VAE_ENDS + [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    _account(dict.fromkeys(expected), tensors.keys())


def _with_square_latents(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The original allows latents of more channels than its encoder gives (two 1 x 1 convolutions stand between them),
    diffusers does not. Zero channels added on both sides of those convolutions change nothing.
    """
    names = ("encoder.conv_out.weight", "encoder.conv_out.bias", "quant_conv.weight")
    names += ("post_quant_conv.weight", "post_quant_conv.bias", "decoder.conv_in.weight")
    if not all(name in tensors for name in names):
        return tensors  # the conversion names what is missing
    conv_out, conv_out_bias, quant, post_quant, post_quant_bias, conv_in = (tensors[name] for name in names)
    inner, outer = conv_in.shape[1], post_quant.shape[1]
    if inner == outer:
        return tensors
    if inner > outer:
        raise ValueError(
            f"the autoencoder squeezes {inner} channels into latents of {outer}; only latents of as many channels as"
            " the encoder gives, or more, can be loaded."
        )

    def widen(tensor, dim, by):
        shape = list(tensor.shape)
        shape[dim] = by
        return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)

    more = outer - inner
    return tensors | {
        "encoder.conv_out.weight": widen(conv_out, 0, 2 * more),
        "encoder.conv_out.bias": widen(conv_out_bias, 0, 2 * more),
        "quant_conv.weight": widen(quant, 1, 2 * more),
        "post_quant_conv.weight": widen(post_quant, 0, more),
        "post_quant_conv.bias": widen(post_quant_bias, 0, more),
        "decoder.conv_in.weight": widen(conv_in, 1, more),
    }


def pipeline_from_original(
    path: str | Path,
    use_ema: bool = True,
    vae: str | Path | None = None,
    config: str | Path | None = None,
    condition_channels: list[str] | None = None,
):
    """
    Make a [`RadioDiffPipeline`] of an original checkpoint.

    Args:
        path: A `.pt` file of the original's trainer of the latent diffusion model.
        use_ema: Take the averaged weights where there are any, or the trained ones.
        vae: The autoencoder's own file, when `path` holds the U-Net alone.
        config: The original's YAML file, for what the weights do not show (see [`read_original_config`]).
        condition_channels: Names of the condition's planes; by default the YAML file's, or the usual three. Where `k2`
            is among them, the model's `condition_ranges` are those of the original's k2 data sets.
    """
    from ..pipelines import RadioDiffPipeline
    from ..schedulers import ConstSDEScheduler
    from .radiodiff_config import original_ranges, read_original_config

    settings = read_original_config(config) if config is not None else None
    parts = read_original(path, use_ema)
    if not parts.unet:
        raise ValueError(f"{path} holds an autoencoder and no U-Net; convert it with vae_from_original.")
    scaling_factor, vae_tensors = parts.scaling_factor, parts.vae
    if vae is not None:
        vae_tensors = read_original(vae, use_ema).vae
    if not vae_tensors:
        raise ValueError(f"{path} holds the U-Net alone; pass the autoencoder's file as vae.")
    unet_settings, scheduler_settings, steps = {}, {}, None
    if settings is not None:
        unet_settings, scheduler_settings, steps = settings.unet, settings.scheduler, settings.num_inference_steps
        condition_channels = condition_channels or settings.condition_channels
        scaling_factor = settings.scaling_factor if scaling_factor is None else scaling_factor
        settings.check(read_unet_config(parts.unet))
    unet_settings = unet_settings | {"condition_ranges": original_ranges(condition_channels or [])}
    pipe = RadioDiffPipeline(
        unet=unet_from_original(parts.unet, condition_channels, **unet_settings),
        scheduler=ConstSDEScheduler(**scheduler_settings),
        vae=vae_from_original(vae_tensors, scaling_factor),
    )
    if steps is not None and "num_inference_steps" in pipe.config:
        pipe.register_to_config(num_inference_steps=steps)
    return pipe

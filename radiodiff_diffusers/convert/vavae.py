"""Load the published VA-VAE tokenizers (and the plain LDM and MAR autoencoders of the same shape)."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from ..hub_names import could_be_on_the_hub

logger = logging.getLogger(__name__)

# of a training checkpoint: the loss networks, the frozen foundation model, and the projection to its features
_NOT_THE_AUTOENCODER = ("loss.", "foundation_model.", "linear_proj.")
_AUTOENCODER = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")

_RENAMES = (
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.downsample\.conv\.", ".downsamplers.0.conv."),
    (r"\.upsample\.conv\.", ".upsamplers.0.conv."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(\.attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def load_original_checkpoint(path: str | Path) -> dict:
    """Read a `.pt`, `.pth`, `.ckpt` or `.safetensors` file; only tensors and plain values, mapped, not copied."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is a folder, not a checkpoint" if path.is_dir() else f"{path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete safetensors file ({error})") from None
    try:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)  # files of before torch 1.6
    except Exception as error:  # a file of any other kind makes the unpickler fail in any way there is
        if isinstance(error, pickle.UnpicklingError):  # torch's own words advise to run what is in the file
            reason = "it is no file of torch.save, or holds objects other than tensors and plain values"
        else:
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint of tensors: {reason}") from None
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected a dictionary of tensors")
    return checkpoint


def vavae_from_original(state_dict: dict, channels: int | None = None) -> AutoencoderKL:
    """Make diffusers' `AutoencoderKL` from an original tokenizer; every size is read from the shapes.

    Args:
        state_dict: The original's tensors by name, or a whole training checkpoint (`state_dict` or `model` inside).
            Entries of the losses, the foundation model and the projection are left out, anything else unknown or
            missing stops the conversion.
        channels: 1 or 3 to adapt the first and last convolution to gray or colour images; as in the file when left
            out. A gray model made of a colour one encodes exactly as the colour one encodes the image repeated.
    """
    tensors = _autoencoder_tensors(state_dict)
    config = _read_config(tensors)
    levels = len(config["block_out_channels"])
    converted = {}
    for name, tensor in tensors.items():
        new_name = _rename(name, levels)
        if ".attentions." in new_name and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]  # 1 x 1 convolutions become matrices
        converted[new_name] = tensor

    vae = AutoencoderKL(**config)
    expected = vae.state_dict()
    missing, unknown = sorted(expected.keys() - converted.keys()), sorted(converted.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"not a VA-VAE state dict: missing {missing[:5] or 'nothing'}, unknown {unknown[:5] or 'nothing'}"
            f" ({len(missing)} and {len(unknown)} of {len(expected)} in all, in diffusers' names)"
        )
    wrong = [name for name in expected if expected[name].shape != converted[name].shape]
    if wrong:
        raise ValueError(
            f"{wrong[0]} has the shape {tuple(converted[wrong[0]].shape)}, expected {tuple(expected[wrong[0]].shape)}"
            f" ({len(wrong)} such tensors)"
        )
    vae.load_state_dict(converted, strict=True)
    if channels is not None:
        vae = adapt_channels(vae, channels)
    return vae.eval()


def vavae_from_file(path: str | Path, channels: int | None = None, statistics: str | Path | None = None):
    """[`vavae_from_original`] on a file, with the latent statistics of a `latents_stats.pt` if one is given."""
    vae = vavae_from_original(load_original_checkpoint(path), channels)
    if statistics is not None:
        values = load_original_checkpoint(statistics)
        if not {"mean", "std"} <= values.keys():
            raise ValueError(f"{statistics} has no latent statistics: expected 'mean' and 'std', found {list(values)}")
        set_latent_statistics(vae, values["mean"], values["std"])
    return vae


def load_tokenizer(path: str | Path, channels: int | None = None) -> AutoencoderKL:
    """A tokenizer from an original checkpoint file, a diffusers folder, a pipeline's folder, or a Hub id."""
    folder = Path(path)
    if folder.is_file():
        return vavae_from_file(folder, channels)
    if folder.is_dir():
        candidates = [f for f in (folder, folder / "vae") if (f / "config.json").is_file()]
        if not candidates:
            raise ValueError(f"{path} holds no tokenizer: expected config.json, or vae/config.json of a pipeline")
        path = candidates[0]
    elif folder.suffix in (".pt", ".pth", ".ckpt", ".safetensors") or not could_be_on_the_hub(path):
        raise ValueError(f"{path}: no such file or folder (and no Hub id, which is owner/name)")
    try:
        vae = AutoencoderKL.from_pretrained(str(path))
    except (OSError, SafetensorError) as error:  # of several lines, and of names that are not the user's
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"the tokenizer {path} cannot be loaded ({reason}): check the name, or copy it again"
        ) from None
    return adapt_channels(vae, channels).eval() if channels is not None else vae.eval()


def training_parts_from_original(state_dict: dict) -> dict[str, dict[str, torch.Tensor]]:
    """What a training checkpoint holds beside the autoencoder, to continue its training.

    Returns a dictionary with those of `discriminator` (for [`PatchDiscriminator`]) and `projection` (for
    [`AlignmentProjection`]) that are there, as state dicts.
    """
    tensors = _unwrap(state_dict)
    parts = {}
    for part, prefix in (("discriminator", "loss.discriminator."), ("projection", "linear_proj.")):
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if found:
            parts[part] = found
    return parts


def set_latent_statistics(vae: AutoencoderKL, mean, std) -> None:
    """Store the mean and standard deviation of each latent channel in the tokenizer's configuration."""
    mean, std = (torch.as_tensor(v).detach().flatten().float().tolist() for v in (mean, std))
    expected = vae.config.latent_channels
    if len(mean) != expected or len(std) != expected:
        raise ValueError(f"statistics of {len(mean)} and {len(std)} channels for a tokenizer of {expected}")
    if not all(s > 0 for s in std):
        raise ValueError("a latent channel has a standard deviation of 0: the statistics are of a dead channel")
    vae.register_to_config(latents_mean=mean, latents_std=std)


@torch.no_grad()
def adapt_channels(vae: AutoencoderKL, channels: int) -> AutoencoderKL:
    """The same autoencoder for gray (1) or colour (3) images; only its first and last convolutions differ.

    Colour to gray: what the colour model gives for the gray image repeated three times, its output averaged. Gray to
    colour: the gray model on the mean of the three colours, its output repeated.
    """
    old = vae.config.in_channels
    if channels not in (1, 3) or old not in (1, 3) or vae.config.out_channels != old:
        raise ValueError(f"cannot go from {old} to {channels} channels: only between 1 (gray) and 3 (colour)")
    if channels == old:
        return vae
    state_dict = vae.state_dict()
    first, last, bias = (state_dict[k] for k in ("encoder.conv_in.weight", *(_LAST + s for s in ("weight", "bias"))))
    if channels == 1:
        first, last, bias = first.sum(1, keepdim=True), last.mean(0, keepdim=True), bias.mean(0, keepdim=True)
    else:
        first, last, bias = first.repeat(1, 3, 1, 1) / 3, last.repeat(3, 1, 1, 1), bias.repeat(3)
    config = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    adapted = AutoencoderKL(**config | {"in_channels": channels, "out_channels": channels})
    if adapted.dtype != vae.dtype:
        adapted.to(vae.dtype)
    adapted.load_state_dict(
        state_dict | {"encoder.conv_in.weight": first, _LAST + "weight": last, _LAST + "bias": bias}, strict=True
    )
    return adapted.train(vae.training)


_LAST = "decoder.conv_out."


def _unwrap(state_dict: dict) -> dict:
    for key in ("state_dict", "model"):
        if isinstance(state_dict.get(key), dict):
            state_dict = state_dict[key]
    state_dict = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): t for name, t in state_dict.items()}
    if not any(name.startswith("encoder.") for name in state_dict):
        # inside a latent diffusion model, or wrapped by one
        for prefix in ("first_stage_model.", "model.", "vae."):
            if any(name.startswith(prefix + "encoder.") for name in state_dict):
                return {k.removeprefix(prefix): t for k, t in state_dict.items() if k.startswith(prefix)}
    return state_dict


def _autoencoder_tensors(state_dict: dict) -> dict[str, torch.Tensor]:
    tensors = {k: t for k, t in _unwrap(state_dict).items() if not k.startswith(_NOT_THE_AUTOENCODER)}
    strange = [name for name in tensors if not name.startswith(_AUTOENCODER)]
    if strange:
        raise ValueError(f"unknown entries in the tokenizer's state dict: {', '.join(strange[:5])} ({len(strange)})")
    for name in ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_out.weight", "quant_conv.weight"):
        if name not in tensors:
            raise ValueError(f"not a VA-VAE state dict: {name} is missing ({len(tensors)} entries of the autoencoder)")
    return tensors


def _read_config(tensors: dict[str, torch.Tensor]) -> dict:
    def count(pattern):
        return 1 + max((int(m[1]) for m in (re.match(pattern, name) for name in tensors) if m), default=-1)

    levels, layers = count(r"encoder\.down\.(\d+)\."), count(r"encoder\.down\.0\.block\.(\d+)\.")
    widths = []
    for level in range(levels):
        name = f"encoder.down.{level}.block.0.conv1.weight"
        if name not in tensors:
            raise ValueError(f"not a VA-VAE state dict: {name} is missing")
        widths.append(tensors[name].shape[0])
    z_channels, embed_dim = tensors["encoder.conv_out.weight"].shape[0], tensors["quant_conv.weight"].shape[0]
    if z_channels != embed_dim:
        raise ValueError(
            f"the encoder gives {z_channels // 2} channels and the latent has {embed_dim // 2}: only tokenizers where "
            "they are equal can be loaded"
        )

    def has_attention(side, level):
        return any(name.startswith(f"{side}.{level}.attn.") for name in tensors)

    return {
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "out_channels": tensors["decoder.conv_out.weight"].shape[0],
        "block_out_channels": tuple(widths),
        "layers_per_block": layers,
        "latent_channels": embed_dim // 2,
        "down_block_types": tuple(
            "AttnDownEncoderBlock2D" if has_attention("encoder.down", i) else "DownEncoderBlock2D"
            for i in range(levels)
        ),
        "up_block_types": tuple(
            "AttnUpDecoderBlock2D" if has_attention("decoder.up", i) else "UpDecoderBlock2D"
            for i in reversed(range(levels))
        ),
        "mid_block_add_attention": any(".mid.attn_1." in name for name in tensors),
        "norm_num_groups": 32,
        "sample_size": 256,
        "scaling_factor": 1.0,
    }


def _rename(name: str, levels: int) -> str:
    name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
    # the original numbers the decoder's levels by resolution, diffusers by the order in which they are run
    name = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.", name)
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name

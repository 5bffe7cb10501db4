"""Load the published LightningDiT checkpoints."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

import torch

from ..models.lightning_dit import (
    LIGHTNING_DIT_SIZES,
    LightningDiTTransformer2DModel,
    rotary_position_tables,
    sincos_position_embedding,
)
from .vavae import load_original_checkpoint

logger = logging.getLogger(__name__)

_POSITION_TABLES = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")

_RENAMES = (
    (r"^x_embedder\.proj\.", "patch_embed."),
    (r"^t_embedder\.mlp\.0\.", "time_embedding.linear_1."),
    (r"^t_embedder\.mlp\.2\.", "time_embedding.linear_2."),
    (r"^y_embedder\.embedding_table\.", "label_embedding."),
    (r"\.attn\.proj\.", ".attn.to_out.0."),
    (r"\.attn\.([qk])_norm\.", r".attn.norm_\1."),
    (r"\.mlp\.(w12|fc1)\.", ".ff.net.0.proj."),
    (r"\.mlp\.(w3|fc2)\.", ".ff.net.2."),
    (r"^(blocks\.\d+)\.adaLN_modulation\.1\.", r"\1.modulation."),
    (r"^final_layer\.norm_final\.", "norm_out."),
    (r"^final_layer\.linear\.", "proj_out."),
    (r"^final_layer\.adaLN_modulation\.1\.", "modulation_out."),
)


def lightningdit_from_original(
    state_dict: dict,
    num_heads: int | None = None,
    num_classes: int | None = None,
    use_ema: bool = True,
    rotary: bool | None = None,
) -> LightningDiTTransformer2DModel:
    """Make a model from an original state dict, or from a whole original checkpoint with `ema` and `model`.

    Args:
        state_dict: The original's tensors by name. The position tables (`pos_embed`, `feat_rope.*`) may be missing.
        num_heads: Attention heads. When left out they are read from the rotary tables or the query norm, or taken
            from the published size of that width.
        num_classes: Classes the new model should have. When it differs from the checkpoint's, the label table is
            replaced (see [`LightningDiTTransformer2DModel.set_num_classes`]).
        use_ema: Of a checkpoint that holds both, take the averaged weights (as sampling does), or the trained ones.
        rotary: Whether attention rotates by position. Left out, it does, as in all published models.
    """
    state_dict = _unwrap(state_dict, use_ema)
    config = _read_config(state_dict, num_heads, rotary)
    _check_position_tables(state_dict, config)

    converted = {}
    for name, tensor in state_dict.items():
        if name in _POSITION_TABLES:
            continue  # recomputed by the model for every input size
        converted.update(_convert(name, tensor, config))

    model = LightningDiTTransformer2DModel(**config)
    expected = model.state_dict()
    missing = sorted(expected.keys() - converted.keys())
    unknown = sorted(converted.keys() - expected.keys())
    if missing or unknown:
        raise ValueError(
            f"not a LightningDiT state dict: missing {missing[:5] or 'nothing'}, unknown {unknown[:5] or 'nothing'}"
            f" ({len(missing)} and {len(unknown)} in all, in our names)"
        )
    wrong = [name for name in expected if expected[name].shape != converted[name].shape]
    if wrong:
        raise ValueError(
            f"{wrong[0]} has the shape {tuple(converted[wrong[0]].shape)}, expected "
            f"{tuple(expected[wrong[0]].shape)} ({len(wrong)} such tensors): is num_heads right?"
        )
    model.load_state_dict(converted, strict=True)
    if num_classes is not None and num_classes != model.config.num_classes:
        model.set_num_classes(num_classes)
    return model.eval()


def lightningdit_from_file(path: str | Path, **kwargs) -> LightningDiTTransformer2DModel:
    """[`lightningdit_from_original`] on a `.pt` file, read without executing anything in it."""
    return lightningdit_from_original(load_original_checkpoint(path), **kwargs)


def _unwrap(state_dict: dict, use_ema: bool) -> dict:
    for key in ("ema", "model") if use_ema else ("model", "ema"):
        if isinstance(state_dict.get(key), dict):
            state_dict = state_dict[key]
            break
    if isinstance(state_dict.get("state_dict"), dict):
        state_dict = state_dict["state_dict"]
    # the trained weights are wrapped once or twice for several devices, and once more if compiled
    state_dict = {re.sub(r"^(module\.|_orig_mod\.)+", "", name): tensor for name, tensor in state_dict.items()}
    if "x_embedder.proj.weight" not in state_dict:
        raise ValueError(
            f"not a LightningDiT state dict: no x_embedder.proj.weight among {len(state_dict)} entries "
            f"(the first: {', '.join(list(state_dict)[:3])})"
        )
    return state_dict


def _read_config(state_dict: dict, num_heads: int | None, rotary: bool | None) -> dict:
    dim, in_channels, patch, _ = state_dict["x_embedder.proj.weight"].shape
    layers = 1 + max((int(m[1]) for m in (re.match(r"blocks\.(\d+)\.", k) for k in state_dict) if m), default=-1)
    if not layers:
        raise ValueError("not a LightningDiT state dict: it has no blocks")
    if rotary is None:
        rotary = True
        if "feat_rope.freqs_cos" not in state_dict and "pos_embed" in state_dict:
            logger.warning(
                "the checkpoint has a table pos_embed but no feat_rope: taken for a model with rotary positions whose "
                "tables were not saved (pass rotary=False if it was trained without)"
            )
    swiglu = "blocks.0.mlp.w12.weight" in state_dict
    hidden = state_dict.get("blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc2.weight")
    tokens = next((state_dict[k].shape[-2] for k in _POSITION_TABLES if k in state_dict), None)
    heads = _number_of_heads(state_dict, dim, num_heads)
    return {
        "sample_size": math.isqrt(tokens) * patch if tokens else 16 * patch,
        "patch_size": patch,
        "in_channels": in_channels,
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "mlp_ratio": _mlp_ratio(dim, hidden.shape[1], swiglu) if hidden is not None else 4.0,
        "num_classes": state_dict["y_embedder.embedding_table.weight"].shape[0] - 1,
        "qk_norm": "blocks.0.attn.q_norm.weight" in state_dict,
        "swiglu": swiglu,
        "rotary": rotary,
        "rms_norm": "blocks.0.norm1.weight" in state_dict,
        "adaln_shift": state_dict["blocks.0.adaLN_modulation.1.weight"].shape[0] == 6 * dim,
    }


def _number_of_heads(state_dict: dict, dim: int, num_heads: int | None) -> int:
    head_dim = next(
        (state_dict[k].shape[-1] for k in ("feat_rope.freqs_cos", "blocks.0.attn.q_norm.weight") if k in state_dict),
        None,
    )
    if num_heads is None:
        by_width = {width: heads for _, width, heads in LIGHTNING_DIT_SIZES.values()}
        num_heads = dim // head_dim if head_dim else by_width.get(dim)
        if num_heads is None:
            raise ValueError(f"a model of width {dim} is no published size: pass num_heads (--num-heads)")
    if not isinstance(num_heads, int) or num_heads < 1:
        raise ValueError(f"num_heads={num_heads!r}: expected a whole number from 1 up")
    if dim % num_heads or (head_dim and dim // num_heads != head_dim):
        raise ValueError(
            f"num_heads={num_heads} does not fit: the width is {dim}"
            + (f" and a head has {head_dim} channels, so it has {dim // head_dim} heads" if head_dim else "")
        )
    return num_heads


def _mlp_ratio(dim: int, hidden: int, swiglu: bool) -> float:
    """A ratio that gives exactly this hidden width, 4 where it does (the widths are rounded down)."""

    def width(ratio):
        return int(2 / 3 * int(dim * ratio)) if swiglu else int(dim * ratio)

    if width(4.0) == hidden:
        return 4.0
    wanted = math.ceil(hidden * 1.5) if swiglu else hidden
    for full in (wanted, wanted + 1, wanted - 1):
        for ratio in (full / dim, (full + 0.5) / dim):
            if width(ratio) == hidden:
                return ratio
    raise ValueError(f"no feed-forward ratio gives a hidden width of {hidden} in a model of width {dim}")


def _convert(name: str, tensor: torch.Tensor, config: dict) -> dict[str, torch.Tensor]:
    if ".attn.qkv." in name:
        return {name.replace("attn.qkv", f"attn.to_{part}"): t for part, t in zip("qkv", tensor.chunk(3), strict=True)}
    if ".mlp.w12." in name:
        # ours gates with the second half, the original with the first
        gate, value = tensor.chunk(2)
        tensor = torch.cat([value, gate])
    if name.startswith("final_layer.linear."):
        # models that also learned a variance have it in the second half of the channels; it is never used
        pixels, channels = config["patch_size"] ** 2, config["in_channels"]
        if tensor.shape[0] == 2 * pixels * channels:
            logger.info("%s: the learned variance is dropped, sampling does not use it", name)
            tensor = tensor.unflatten(0, (pixels, 2 * channels))[:, :channels].flatten(0, 1)
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return {name: tensor}


def _check_position_tables(state_dict: dict, config: dict) -> None:
    """The tables are fixed by design; a checkpoint that trained its own would be another function."""
    side = config["sample_size"] // config["patch_size"]
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    tables = {"pos_embed": sincos_position_embedding(side, side, dim)[None]}
    if config["rotary"]:
        tables |= zip(
            ("feat_rope.freqs_cos", "feat_rope.freqs_sin"),
            rotary_position_tables(side, side, config["attention_head_dim"]),
            strict=True,
        )
    for name, table in tables.items():
        if name not in state_dict:
            continue
        given = state_dict[name].float()
        # checkpoints stored in half precision round the table by up to 0.004
        if given.shape != table.shape or (given - table).abs().max() > 1e-2:
            raise ValueError(f"{name} is not the fixed position table of a {side} x {side} grid: not a model we know")

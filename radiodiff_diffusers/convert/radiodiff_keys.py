"""The names of the original RadioDiff's tensors: ours translated to theirs, sizes read from shapes, what is dead."""

import math
import re

import torch

# ours -> the original's; applied in order, once each
_MODULES = (
    (r"^adapter\.", "init_conv_carK."),
    (r"^conv_in\.", "init_conv.0."),
    (r"^norm_in\.", "init_conv.1."),
    (r"^condition_proj\.", "projects."),
    (r"^time_embedding\.frequencies$", "time_mlp.0.W"),
    (r"^time_embedding\.linear_1\.", "time_mlp.1."),
    (r"^time_embedding\.linear_2\.", "time_mlp.3."),
    (r"^down_blocks\.(\d+)\.relation\.", r"relation_layers_down.\1."),
    (r"^down_blocks\.(\d+)\.resnet1\.", r"downs.\1.0."),
    (r"^down_blocks\.(\d+)\.resnet2\.", r"downs.\1.1."),
    (r"^down_blocks\.(\d+)\.attention\.", r"downs.\1.2."),
    (r"^down_blocks\.(\d+)\.downsample\.", r"downs.\1.3."),
    (r"^mid_block\.resnet1\.", "mid_block1."),
    (r"^mid_block\.attention\.", "mid_attn."),
    (r"^mid_block\.resnet2\.", "mid_block2."),
    (r"^drift_decoder\.filter_norm\.", "decouple1.0."),
    (r"^drift_decoder\.filter_conv\.", "decouple1.1."),
    (r"^drift_decoder\.filter\.weight", "decouple1.2.complex_weight"),
    (r"^noise_decoder\.filter_norm\.", "decouple2.0."),
    (r"^noise_decoder\.filter_conv\.", "decouple2.1."),
    (r"^noise_decoder\.filter\.weight", "decouple2.2.complex_weight"),
    (r"^drift_decoder\.up_blocks\.(\d+)\.relation\.", r"relation_layers_up.\1."),
    (r"^noise_decoder\.up_blocks\.(\d+)\.relation\.", r"relation_layers_up2.\1."),
    (r"^drift_decoder\.up_blocks\.", "ups."),
    (r"^noise_decoder\.up_blocks\.", "ups2."),
    (r"^(ups2?\.\d+)\.resnet1\.", r"\1.0."),
    (r"^(ups2?\.\d+)\.resnet2\.", r"\1.1."),
    (r"^(ups2?\.\d+)\.attention\.", r"\1.2."),
    (r"^(ups2?\.[012])\.upsample\.", r"\1.3.1."),  # after the doubling, which is a layer of its own there
    (r"^(ups2?\.3)\.upsample\.", r"\1.3."),
    (r"^drift_decoder\.resnet_out\.", "final_res_block."),
    (r"^noise_decoder\.resnet_out\.", "final_res_block2."),
    (r"^drift_decoder\.conv_out\.", "final_conv."),
    (r"^noise_decoder\.conv_out\.", "final_conv2."),
)
_LAYERS = (
    (r"^(relation_layers_\w+\.\d+)\.condition_in\.", r"\1.input_conv1."),
    (r"^(relation_layers_\w+\.\d+)\.feature_in\.", r"\1.input_conv2."),
    (r"^(relation_layers_\w+\.\d+)\.skip\.", r"\1.attentions.0.concat_conv."),
    (r"^(relation_layers_\w+\.\d+)\.norm\.", r"\1.attentions.0.gn."),
    (r"^(relation_layers_\w+\.\d+)\.to_([qkv])\.", r"\1.attentions.0.\2_lin."),
    (r"^(relation_layers_\w+\.\d+)\.ff_in\.", r"\1.attentions.0.mlp.fc1."),
    (r"^(relation_layers_\w+\.\d+)\.ff_out\.", r"\1.attentions.0.mlp.fc2."),
    (r"^(relation_layers_\w+\.\d+)\.to_out\.0\.", r"\1.attentions.0.out_conv."),
    (r"\.time_proj\.", ".mlp.1."),
    (r"\.(conv)([12])\.", r".block\2.proj."),
    (r"(\d)\.norm([12])\.", r"\1.block\2.norm."),
    (r"^(final_res_block2?)\.norm([12])\.", r"\1.block\2.norm."),
    (r"\.conv_shortcut\.", ".res_conv."),
    (r"^(downs\.\d+\.2|ups2?\.\d+\.2|mid_attn)\.norm\.weight$", r"\1.fn.norm.g"),
    (r"^(downs\.\d+\.2|ups2?\.\d+\.2|mid_attn)\.to_qkv\.", r"\1.fn.fn.to_qkv."),
    (r"^(downs\.\d+\.2|ups2?\.\d+\.2)\.to_out\.0\.", r"\1.fn.fn.to_out.0."),
    (r"^(downs\.\d+\.2|ups2?\.\d+\.2)\.to_out\.1\.weight$", r"\1.fn.fn.to_out.1.g"),
    (r"^mid_attn\.to_out\.0\.", "mid_attn.fn.fn.to_out."),
)
_ENCODERS = {
    "swin": (
        (r"^encoder\.patch_embed\.", "first_coonv."),
        (r"^encoder\.stages\.(\d+)\.", lambda m: f"features.{2 * int(m[1])}."),
        (r"^encoder\.merges\.(\d+)\.", lambda m: f"features.{2 * int(m[1]) + 1}."),
    ),
    "resnet": ((r"^encoder\.", ""),),
    "effnet": (
        (r"^encoder\.features\.0\.", "first_coonv."),
        (r"^encoder\.features\.(\d+)\.", lambda m: f"features.{int(m[1]) - 1}."),
    ),
    "vgg": ((r"^encoder\.", ""),),
}
ENCODER = "init_conv_mask."

# tensors the original keeps and never uses in its forward pass, and constants it recomputes
_DEAD = {
    "swin": r"^init_conv_mask\.(norm|head)\.|\.relative_position_index$",
    "resnet": r"^init_conv_mask\.fc\.",
    "effnet": r"^init_conv_mask\.(features\.7|classifier)\.",
    "vgg": r"^init_conv_mask\.classifier\.",
}


def is_dead(name: str, encoder: str, adapter: bool) -> bool:
    """Whether the original has this tensor without ever using it."""
    if name.startswith("init_conv_carK."):
        return not adapter
    return bool(re.search(_DEAD[encoder], name)) or name.startswith("cond_pos_embedding.")


def original_name(name: str, encoder: str) -> str:
    """The original's name of one of our tensors."""
    if name.startswith("encoder."):
        for pattern, replacement in _ENCODERS[encoder]:
            new_name = re.sub(pattern, replacement, name)
            if new_name != name:
                return ENCODER + new_name
    for pattern, replacement in _MODULES + _LAYERS:
        name = re.sub(pattern, replacement, name)
    return name


def read_unet_config(tensors: dict[str, torch.Tensor]) -> dict:
    """The arguments of our model, read from the shapes of the original's tensors."""

    def shape(name):
        if name not in tensors:
            raise ValueError(f"this is no RadioDiff U-Net: {name} is missing ({len(tensors)} tensors were given).")
        return tuple(tensors[name].shape)

    base = shape("init_conv.0.weight")[0]
    levels = 1 + max((int(m[1]) for m in (re.match(r"downs\.(\d+)\.", k) for k in tensors) if m), default=-1)
    if levels != 4:
        raise ValueError(f"this U-Net has {levels} levels; RadioDiff's have 4, one for each of its encoder's stages.")
    widths = [shape(f"downs.{level}.3.weight")[0] for level in range(levels)]
    heads_times_dim = shape("downs.0.2.fn.fn.to_qkv.weight")[0] // 3
    _, height, width, _ = shape("decouple1.2.complex_weight")
    if width < 2:
        raise ValueError(f"the Fourier filter is {height} x {width}; it needs two columns at least.")
    # the filter sees the map at an eighth of the latent; of its rows' spectrum half the columns and one are kept
    size = [8 * height, 16 * (width - 1)]
    encoder, encoder_config = _read_encoder(tensors, shape)
    return {
        "sample_size": size[0] if size[0] == size[1] else size,
        "in_channels": shape("final_conv.weight")[0],
        "condition_encoder": encoder,
        "condition_encoder_config": encoder_config,
        "base_channels": base,
        "channel_multipliers": [w // base for w in widths],
        "num_attention_heads": 4,
        "attention_head_dim": heads_times_dim // 4,
    }


def _read_encoder(tensors, shape) -> tuple[str, dict | None]:
    if ENCODER + "first_coonv.2.weight" in tensors:
        depths, heads = [], []
        for stage in range(4):
            pattern = re.compile(rf"{re.escape(ENCODER)}features\.{2 * stage}\.(\d+)\.")
            depths.append(1 + max((int(m[1]) for m in map(pattern.match, tensors) if m), default=-1))
            table = shape(f"{ENCODER}features.{2 * stage}.0.attn.relative_position_bias_table")
            heads.append(table[1])
        return "swin", {
            "embed_dim": shape(ENCODER + "first_coonv.0.weight")[0],
            "depths": depths,
            "num_heads": heads,
            "window_size": (math.isqrt(table[0]) + 1) // 2,
        }
    for name, mark in (
        ("effnet", "first_coonv.0.weight"),
        ("resnet", "layer1.0.conv1.weight"),
        ("vgg", "features.0.weight"),
    ):
        if ENCODER + mark in tensors:
            return name, None
    raise ValueError("this is no RadioDiff U-Net: its condition encoder (init_conv_mask.*) is none of the four known.")

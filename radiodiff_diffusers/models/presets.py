"""Ready configurations of [`RadioDiffUNet2DModel`], and of the autoencoder that `base` works with, as plain
dictionaries of their arguments."""

_OUTDOOR = ["buildings", "transmitter", "buildings"]
_RAYS = ["buildings", "transmitter", "visibility", "obstruction", "log_distance"]

# the published RadioDiff's autoencoder, diffusers' AutoencoderKL
RADIODIFF_AUTOENCODER = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 3,
    "block_out_channels": [128, 256, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "sample_size": 256,
    "scaling_factor": 0.3,
}

RADIODIFF_UNET_PRESETS = {
    # the published RadioDiff: latents of 256 x 256 maps, Swin-B, 225 M parameters
    "base": {
        "sample_size": 64,
        "in_channels": 3,
        "condition_channels": _OUTDOOR,
        "condition_encoder": "swin",
        "base_channels": 128,
        "channel_multipliers": [1, 2, 4, 4],
        "window_sizes": [8, 4, 2, 1],
        "relation_norm": "batch",
    },
}


def _pixel_preset(base_channels, multipliers, head_dim, encoder_width, encoder_max):
    """A model of pixels, without autoencoder: 256 x 256 maps, folded to 64 x 64 inside."""
    return {
        "sample_size": 256,
        "in_channels": 1,
        "patch_size": 4,
        "condition_channels": _RAYS,
        "condition_encoder": "conv",
        "condition_encoder_config": {"width": encoder_width, "stride": 4, "max_width": encoder_max},
        "base_channels": base_channels,
        "channel_multipliers": multipliers,
        "window_sizes": [8, 4, 2, 1],
        "attention_head_dim": head_dim,
        "relation_norm": "group",
        "fourier_scale": 4.0,
    }


RADIODIFF_UNET_PRESETS["small"] = _pixel_preset(64, [1, 1, 2, 2], 16, 64, 128)
RADIODIFF_UNET_PRESETS["tiny"] = _pixel_preset(32, [1, 1, 2, 2], 16, 32, 64)
RADIODIFF_UNET_PRESETS["test"] = {
    **_pixel_preset(16, [1, 1, 1, 1], 4, 8, 16),
    "sample_size": 32,
    "condition_channels": _OUTDOOR,
}

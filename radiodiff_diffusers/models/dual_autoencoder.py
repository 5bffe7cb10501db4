"""An autoencoder with two encoders: one for the map, one for what is known of the scene, one decoder for both."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, DecoderOutput, DiagonalGaussianDistribution, Encoder
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

FUSIONS = ("concat", "add", "cross_attention")


class DualAutoencoderKL(ModelMixin, ConfigMixin):
    r"""
    The dual VAE for several conditions: `encode(image, condition)` gives one distribution over both latents (first
    the image's, then the condition's channels), `decode` fuses a sample of it and decodes the image.

    Parameters:
        in_channels (`int`, defaults to 1): Planes of the image.
        condition_channels (`int`, defaults to 3): Planes of the condition.
        out_channels (`int`, defaults to 1): Planes of what is decoded.
        latent_channels (`int`, defaults to 3): Channels of each of the two latents.
        block_out_channels (`list[int]`): Widths of the levels; each but the last halves the size.
        layers_per_block (`int`, defaults to 2): Residual blocks a level.
        norm_num_groups (`int`, defaults to 32): Groups of the group norms.
        fusion (`str`, defaults to `"concat"`): `"concat"` and a 1 x 1 convolution, `"add"`, or `"cross_attention"` of
            the image's latent to the condition's.
        scaling_factor (`float`, defaults to 0.3): What a diffusion model multiplies latents by.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["Encoder", "Decoder"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        condition_channels: int = 3,
        out_channels: int = 1,
        latent_channels: int = 3,
        block_out_channels: list[int] = (128, 256, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        fusion: str = "concat",
        scaling_factor: float = 0.3,
    ):
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is {fusion!r}; choose one of {', '.join(FUSIONS)}")
        levels = len(block_out_channels)
        common = {
            "block_out_channels": list(block_out_channels),
            "layers_per_block": layers_per_block,
            "norm_num_groups": norm_num_groups,
        }

        def encoder(channels: int) -> Encoder:
            return Encoder(channels, latent_channels, ("DownEncoderBlock2D",) * levels, double_z=True, **common)

        self.encoder, self.condition_encoder = encoder(in_channels), encoder(condition_channels)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.condition_quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.fuse = _Fusion(fusion, latent_channels)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(latent_channels, out_channels, ("UpDecoderBlock2D",) * levels, **common)

    def encode(
        self, image: torch.Tensor, condition: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """
        Both posteriors as one distribution.

        Args:
            image (`torch.Tensor`): Planes in [-1, 1], `(batch, in_channels, height, width)`.
            condition (`torch.Tensor`): Planes in [-1, 1], `(batch, condition_channels, height, width)`.
            return_dict (`bool`, defaults to `True`): Return an `AutoencoderKLOutput` rather than a tuple.
        """
        image_mean, image_logvar = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        mean, logvar = self.condition_quant_conv(self.condition_encoder(condition)).chunk(2, dim=1)
        moments = torch.cat([image_mean, mean, image_logvar, logvar], dim=1)
        posterior = DiagonalGaussianDistribution(moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, latent: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """
        The image of a latent.

        Args:
            latent (`torch.Tensor`): Both latents, `(batch, 2 * latent_channels, height, width)`.
            return_dict (`bool`, defaults to `True`): Return a `DecoderOutput` rather than a tuple.
        """
        image, condition = latent.chunk(2, dim=1)
        sample = self.decoder(self.post_quant_conv(self.fuse(image, condition)))
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, image: torch.Tensor, condition: torch.Tensor) -> DecoderOutput:
        """
        Encode, take the posterior's mode, decode.

        Args:
            image (`torch.Tensor`): See `encode`.
            condition (`torch.Tensor`): See `encode`.
        """
        return self.decode(self.encode(image, condition).latent_dist.mode())


class _Fusion(nn.Module):
    def __init__(self, kind: str, channels: int, width: int = 64, heads: int = 4):
        super().__init__()
        self.kind = kind
        if kind == "concat":
            self.project = nn.Conv2d(2 * channels, channels, 1)
        elif kind == "cross_attention":
            self.image_in, self.condition_in = nn.Conv2d(channels, width, 1), nn.Conv2d(channels, width, 1)
            self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
            self.out = nn.Conv2d(width, channels, 1)

    def forward(self, image: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        if self.kind == "concat":
            return self.project(torch.cat([image, condition], dim=1))
        if self.kind == "add":
            return image + condition
        query, key = (
            f(x).flatten(2).transpose(1, 2) for f, x in ((self.image_in, image), (self.condition_in, condition))
        )
        attended = self.attention(query, key, key, need_weights=False)[0]
        return image + self.out(attended.transpose(1, 2).reshape(image.shape[0], -1, *image.shape[2:]))

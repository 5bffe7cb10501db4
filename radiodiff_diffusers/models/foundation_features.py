"""Features of a frozen vision foundation model (DINOv2, MAE), to which a tokenizer can be aligned."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

# name: (timm model, what its checkpoint is called on the Hub)
FOUNDATION_MODELS = {
    "dinov2": "vit_large_patch14_dinov2.lvd142m",
    "dinov2-base": "vit_base_patch14_dinov2.lvd142m",
    "dinov2-small": "vit_small_patch14_dinov2.lvd142m",
    "mae": "vit_large_patch16_224.mae",
    "mae-base": "vit_base_patch16_224.mae",
}

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class FoundationFeatures(nn.Module):
    """
    Patch features on the grid of a tokenizer's latents: image in [-1, 1] to (batch, channels, H / 16, W / 16).

    The image is resized so that the model's patches fall on the latent pixels (224 for 256 with patches of 14), and
    the model's position table is resampled to that grid (bicubic, antialiased). The features are those of the last
    block after the final norm, without the class token. The model is frozen, always in eval mode, and runs in the
    type it was given (half precision is allowed).

    Args:
        model: A timm `VisionTransformer` made with `dynamic_img_size=True`.
        downsample: Pixels of the image for one latent pixel (16).
        imagenet_normalization: Shift and scale the colours as the model was trained with. Published VA-VAE tokenizers
            were trained without (the image goes in as it is, in [-1, 1]), so that is the default.
        antialias: Antialias the resize of the image. Off by default, as in the published tokenizers.
    """

    def __init__(
        self, model: nn.Module, downsample: int = 16, imagenet_normalization: bool = False, antialias: bool = False
    ):
        super().__init__()
        if not getattr(model, "dynamic_img_size", False):
            raise ValueError("the foundation model must be a timm vision transformer made with dynamic_img_size=True")
        self.model = model.requires_grad_(False).eval()
        self.downsample = downsample
        self.imagenet_normalization = imagenet_normalization
        self.antialias = antialias
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, name: str = "dinov2", weights: str | Path | None = None, **kwargs) -> FoundationFeatures:
        """A published model by our name (`"dinov2"`, `"mae"`, ...) or timm's; from the Hub, or a local weights file.

        `kwargs` are those of the class. `weights` is a `.safetensors` or `.pth` file with timm's tensor names.
        """
        import timm

        timm_name = FOUNDATION_MODELS.get(name, name)
        if weights is not None and not Path(weights).is_file():
            raise ValueError(f"{weights}: no such file (weights of the foundation model {name})")
        try:
            options = {"dynamic_img_size": True, "num_classes": 0}
            if weights is None:
                model = timm.create_model(timm_name, pretrained=True, **options)
            else:
                overlay = {"file": str(weights)}
                model = timm.create_model(timm_name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except Exception as error:  # timm and the Hub client raise many kinds, all meaning the same to a user
            if "Unknown model" in str(error):
                raise ValueError(f"unknown foundation model {name!r}: {', '.join(FOUNDATION_MODELS)}") from None
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
            raise OSError(
                f"the weights of the foundation model {name!r} cannot be had ({reason}): fetch {timm_name} from the "
                "Hub where there is a network and pass the file as weights=..., or train without alignment"
            ) from error
        return cls(model, **kwargs)

    @property
    def channels(self) -> int:
        """Channels of the features."""
        return self.model.num_features

    def train(self, mode: bool = True) -> FoundationFeatures:
        """Stays in eval mode, whatever the training loop asks for."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        batch, colours, height, width = image.shape
        if height % self.downsample or width % self.downsample or colours not in (1, 3):
            raise ValueError(
                f"image is {tuple(image.shape)}: expected 1 or 3 channels, height and width multiples of "
                f"{self.downsample}"
            )
        if colours == 1:
            image = image.expand(-1, 3, -1, -1)
        rows, columns = height // self.downsample, width // self.downsample
        patch = self.model.patch_embed.patch_size[0]
        size = (rows * patch, columns * patch)
        if size != (height, width):
            image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=self.antialias)
        if self.imagenet_normalization:
            image = ((image + 1) / 2 - self.mean) / self.std
        tokens = self.model.forward_features(image.to(self.model.patch_embed.proj.weight.dtype))
        tokens = tokens[:, self.model.num_prefix_tokens :]
        return tokens.transpose(1, 2).reshape(batch, -1, rows, columns)

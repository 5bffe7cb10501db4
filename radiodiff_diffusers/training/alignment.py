"""Alignment of a tokenizer's latents with the features of a vision foundation model (the VF loss of VA-VAE).

Two terms: each latent vector should point the way of the feature at its place (marginal cosine), and the latents of an
image should be as like one another as its features are (marginal distance matrix). Margins leave the tokenizer room.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# entries of the similarity matrices that are held at once: 16 MB each in fp32
_CHUNK_ENTRIES = 4 * 1024 * 1024


def alignment_loss(
    z: torch.Tensor, features: torch.Tensor, cos_margin: float = 0.0, distance_margin: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The marginal cosine and the marginal distance-matrix loss, two scalars in fp32.

    Args:
        z: Latents already projected to the features' channels (see [`AlignmentProjection`]), (batch, channels, h, w).
        features: Foundation features of the same shape.
        cos_margin: Cosine distances below it cost nothing.
        distance_margin: Differences of similarities below it cost nothing.

    The distance matrix has (h w)^2 entries an image; beyond a fixed size it is computed in slices, again in the
    backward pass, so that memory does not grow with it.
    """
    if z.ndim != 4 or z.shape != features.shape:
        raise ValueError(
            f"z is {tuple(z.shape)} and features {tuple(features.shape)}: both must be (batch, channels, h, w), "
            "with z projected to the features' channels"
        )
    with torch.autocast(z.device.type, enabled=False):
        z, features = z.float().flatten(2), features.float().flatten(2)
        cosine = F.cosine_similarity(z, features, dim=1)
        marginal_cosine = F.relu(1 - cos_margin - cosine).mean()

        z, features = F.normalize(z, dim=1), F.normalize(features, dim=1)
        batch, _, positions = z.shape
        rows = max(1, _CHUNK_ENTRIES // (batch * positions))
        if rows >= positions:
            total = _distance_sum(z, z, features, features, distance_margin)
        else:
            total = 0.0
            for start in range(0, positions, rows):
                part = slice(start, start + rows)
                arguments = (z[..., part], z, features[..., part], features, distance_margin)
                total = total + checkpoint(_distance_sum, *arguments, use_reentrant=False)
        marginal_distance = total / (batch * positions**2)
    return marginal_cosine, marginal_distance


def _distance_sum(z_rows, z, feature_rows, features, margin):
    difference = torch.bmm(z_rows.mT, z) - torch.bmm(feature_rows.mT, features)
    return F.relu(difference.abs() - margin).sum()


class AlignmentProjection(nn.Module):
    """Brings latents and features to the same channels with a learned 1 x 1 convolution.

    With `reverse` (the published way) the latents go up to the features' channels, without bias; else the features
    come down to the latents', with bias. Train it with the autoencoder; checkpoints call it `linear_proj`.
    """

    def __init__(self, latent_channels: int, feature_channels: int, reverse: bool = True):
        super().__init__()
        self.reverse = reverse
        sizes = (latent_channels, feature_channels) if reverse else (feature_channels, latent_channels)
        convolution = nn.Conv2d(*sizes, kernel_size=1, bias=not reverse)
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, z: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both in the same channels: (z projected, features) or (z, features projected)."""
        if self.reverse:
            return F.conv2d(z, self.weight, self.bias), features
        return z, F.conv2d(features, self.weight, self.bias)


def adaptive_weight(
    reference_loss: torch.Tensor,
    loss: torch.Tensor,
    parameter: torch.Tensor,
    scale: float = 1.0,
    maximum: float = 1e8,
) -> torch.Tensor:
    """How much `loss` must weigh for its gradient at `parameter` to be `scale` times the reference's.

    The norm of the reference's gradient over the loss's (plus 1e-4), clamped to `maximum`, then times `scale`; no
    gradient flows through it. VA-VAE takes the reconstruction loss as reference: at `encoder.conv_out.weight` for the
    alignment (maximum 1e8), at `decoder.conv_out.weight` for the GAN (maximum 1e4). Without gradients (validation)
    the weight is 0.
    """
    if not (torch.is_grad_enabled() and reference_loss.requires_grad and loss.requires_grad):
        return torch.zeros((), device=loss.device)
    (reference_gradient,) = torch.autograd.grad(reference_loss, parameter, retain_graph=True)
    (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
    weight = reference_gradient.norm() / (gradient.norm() + 1e-4)
    return weight.clamp(0.0, maximum).detach() * scale

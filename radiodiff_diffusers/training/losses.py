"""The losses of the recipes, as pure functions of tensors.

VAE-GAN: RadioDiff's autoencoder loss (L1 + L2 + LPIPS, KL, PatchGAN with an adaptive weight; the scheme of VQGAN,
Esser et al. 2021, equations 6 and 7). Diffusion: the pair loss of decoupled diffusion (`pred_KC`). Besides, terms
that may be added to
either by name: `gradient`, `ssim`, `feature_matching`, `helmholtz`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Reconstruction
# ---------------------------------------------------------------------------------------------------------


def pixel_error(image: Tensor, reconstruction: Tensor, squared: bool = True) -> Tensor:
    """|x - r| + (x - r)^2 at every pixel; without the square it is the error VA-VAE uses."""
    difference = image - reconstruction
    return difference.abs() + difference.square() if squared else difference.abs()


def summed_nll(error: Tensor, perceptual: Tensor | None = None, perceptual_weight: float = 1.0) -> Tensor:
    """The reconstruction's negative log likelihood: summed over a sample, averaged over the batch.

    `perceptual` holds one value a sample (B, 1, 1, 1) and counts at every pixel, as in the original: the sum over
    pixels multiplies it, so that its weight does not depend on the size of the map.
    """
    if perceptual is not None:
        error = error + perceptual_weight * perceptual
    return error.sum() / error.shape[0]


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL of the posterior from a standard normal: summed over a sample, averaged over the batch."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum() / mean.shape[0]


class PerceptualLoss(nn.Module):
    """LPIPS on VGG features (Zhang et al. 2018) through the `lpips` package; other than three channels are handled.

    One channel is repeated to three; of more, each is compared by itself and the distances are averaged.
    """

    def __init__(self, network: str = "vgg", pretrained: bool = True):
        super().__init__()
        try:
            import lpips
        except ImportError:
            raise ValueError("the perceptual loss needs lpips: pip install lpips, or set perceptual: none") from None
        try:
            self.lpips = lpips.LPIPS(net=network, pnet_rand=not pretrained, verbose=False)
        except OSError as error:  # URLError of a failed download is an OSError
            raise ValueError(
                f"the {network} weights of the perceptual loss could not be downloaded ({error}); connect once, "
                "put the file where torch.hub looks for it, or train without them: perceptual: none"
            ) from None
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        return super().train(False)  # a yardstick does not train

    def forward(self, image: Tensor, reconstruction: Tensor) -> Tensor:
        batch, channels = image.shape[:2]
        if channels not in (1, 3):
            image, reconstruction = (x.reshape(batch * channels, 1, *x.shape[2:]) for x in (image, reconstruction))
        if image.shape[1] == 1:
            image, reconstruction = image.expand(-1, 3, -1, -1), reconstruction.expand(-1, 3, -1, -1)
        distance = self.lpips(image, reconstruction)
        return distance.reshape(batch, -1).mean(1).reshape(batch, 1, 1, 1)


def make_perceptual(name: str) -> PerceptualLoss | None:
    """`vgg`, `alex` or `squeeze` from the lpips package, or `none`; never one in place of another."""
    if name in ("none", None):
        return None
    if name not in ("vgg", "alex", "squeeze"):
        raise ValueError(f"perceptual is {name!r}; choose vgg, alex, squeeze or none")
    return PerceptualLoss(name)


# Adversarial
# ------------------------------------------------------------------------------------------------------------


def generator_loss(logits_fake: Tensor) -> Tensor:
    """What the autoencoder wants: high scores for its reconstructions."""
    return -logits_fake.mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor, kind: str = "hinge") -> Tensor:
    """Hinge or vanilla (softplus) loss of the discriminator."""
    if kind == "hinge":
        return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())
    if kind == "vanilla":
        return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())
    raise ValueError(f"discriminator loss is {kind!r}; choose hinge or vanilla")


def adaptive_weight(
    nll: Tensor, other: Tensor, layer: Tensor, weight: float, largest: float = 1e4, floor: float = 1e-4
) -> Tensor:
    """Balance another loss against the reconstruction by their gradients at one layer's weight.

    weight * clamp(|d nll / d W| / (|d other / d W| + 1e-4), 0, largest); constant, no gradient flows through it.
    """
    (nll_gradient,) = torch.autograd.grad(nll, layer, retain_graph=True)
    (other_gradient,) = torch.autograd.grad(other, layer, retain_graph=True)
    ratio = nll_gradient.float().norm() / (other_gradient.float().norm() + floor)
    return weight * ratio.clamp(0.0, largest).detach()


def gan_active(step: int, disc_start: int | None) -> bool:
    """Whether the adversarial phase has begun: `disc_start` counts optimiser steps of the autoencoder; None is
    never."""
    return disc_start is not None and step >= disc_start


# Diffusion
# ---------------------------------------------------------------------------------------------------------------


def pair_loss(
    drift: Tensor,
    noise: Tensor,
    drift_target: Tensor,
    noise_target: Tensor,
    weights: tuple[Tensor, Tensor] | None = None,
    l1: bool = True,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """The `pred_KC` loss, one value a sample: w1 |C - C'|^2 + w2 |e - e'|^2, averaged over a sample's elements.

    With `l1` the absolute errors are added and the sum halved, as the original trains. `weights` come from
    `ConstSDEScheduler.loss_weights`. `pixel_weight` (B, 1, H, W) leaves out or stresses pixels.
    """

    def error(prediction: Tensor, target: Tensor) -> Tensor:
        difference = prediction.float() - target.float()
        value = difference.square()
        if l1:
            value = (value + difference.abs()) / 2
        if pixel_weight is None:
            return value.flatten(1).mean(1)
        kept = pixel_weight.expand_as(value).flatten(1)
        return (value.flatten(1) * kept).sum(1) / kept.sum(1).clamp(min=1e-6)

    first, second = error(drift, drift_target), error(noise, noise_target)
    if weights is not None:
        first, second = weights[0] * first, weights[1] * second
    return first + second


def latent_scale(latents: Tensor) -> float:
    """The factor that gives these latents a standard deviation of one."""
    return float(1.0 / latents.float().std())


# Terms by name
# ---------------------------------------------------------------------------------------------------------- Each
# takes prediction and target in [-1, 1], (B, C, H, W), and `free`, (B, 1, H, W), 1 outside buildings, and gives one
# value a sample.


def gradient_term(prediction: Tensor, target: Tensor, free: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the Sobel gradients: edges of shadows in the right place."""
    kernel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], device=prediction.device) / 8
    kernels = torch.stack([kernel, kernel.T])[:, None]
    difference = (prediction - target).float()
    batch, channels, height, width = difference.shape
    padded = F.pad(difference.reshape(batch * channels, 1, height, width), (1, 1, 1, 1), mode="replicate")
    edges = F.conv2d(padded, kernels).abs().sum(1).reshape(batch, channels, height, width)
    return _mean_over(edges, free)


def ssim_term(prediction: Tensor, target: Tensor, free: Tensor | None = None) -> Tensor:
    """1 - SSIM (Wang et al. 2004: Gaussian window of 11, sigma 1.5, range 2)."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    position = torch.arange(11, device=prediction.device, dtype=torch.float32) - 5
    line = torch.exp(-position.square() / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    batch, channels, height, width = prediction.shape

    def blur(x: Tensor) -> Tensor:
        x = F.pad(x.reshape(batch * channels, 1, height, width), (5, 5, 5, 5), mode="reflect")
        return F.conv2d(x, window[None, None]).reshape(batch, channels, height, width)

    x, y = prediction.float(), target.float()
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return 1 - _mean_over(similarity, free)


def helmholtz_term(
    prediction: Tensor,
    target: Tensor,
    free: Tensor | None = None,
    db_per_unit: float = 49.58,
    largest_db: float = 20.0,
) -> Tensor:
    """Residual of the Helmholtz equation lap(u) + k^2 u = 0 (with k^2 of the true map), relative to u.

    With the amplitude u = 10^(dB / 20), lap(u) / u at a pixel is the sum over its four neighbours of
    exp(a (dB_neighbour - dB)) minus 4, a = ln(10) / 20: only differences of dB count, so nothing under- or overflows,
    and the relative residual is the difference of the two maps' lap(u) / u. Steps are clamped at `largest_db`; pixels
    that touch a building do not count, for the equation does not hold there.
    """
    scale = math.log(10) / 20 * db_per_unit
    largest = math.log(10) / 20 * largest_db

    def relative_laplacian(x: Tensor) -> Tensor:
        x = x.float()
        centre = x[..., 1:-1, 1:-1]
        neighbours = (x[..., :-2, 1:-1], x[..., 2:, 1:-1], x[..., 1:-1, :-2], x[..., 1:-1, 2:])
        return sum(((n - centre) * scale).clamp(-largest, largest).exp() for n in neighbours) - 4.0

    residual = (relative_laplacian(prediction) - relative_laplacian(target)).abs()
    if free is not None:
        # eroded: a pixel counts where it and its four neighbours are free
        f = free.float()
        free = f[..., 1:-1, 1:-1] * f[..., :-2, 1:-1] * f[..., 2:, 1:-1] * f[..., 1:-1, :-2] * f[..., 1:-1, 2:]
    return _mean_over(residual, free)


def feature_matching(features_real: Sequence[Tensor], features_fake: Sequence[Tensor]) -> Tensor:
    """L1 between the discriminator's feature maps of truth and reconstruction (Wang et al. 2018, pix2pixHD)."""
    return torch.stack(
        [F.l1_loss(fake, real.detach()) for real, fake in zip(features_real, features_fake, strict=False)]
    ).mean()


IMAGE_TERMS: dict[str, Callable[..., Tensor]] = {
    "gradient": gradient_term,
    "ssim": ssim_term,
    "helmholtz": helmholtz_term,
}


def check_terms(terms: dict[str, float], also: Sequence[str] = ()) -> None:
    """Stop on a term nobody knows, before anything is built."""
    known = [*IMAGE_TERMS, *also]
    for name in terms:
        if name not in known:
            raise ValueError(f"extra_losses names {name!r}; known here: {', '.join(known)}")


def image_terms(
    terms: dict[str, float], prediction: Tensor, target: Tensor, free: Tensor | None = None
) -> dict[str, Tensor]:
    """The named terms, each times its weight, one value a sample. Terms that are not image terms are skipped."""
    return {
        name: weight * IMAGE_TERMS[name](prediction, target, free)
        for name, weight in terms.items()
        if name in IMAGE_TERMS and weight
    }


def _mean_over(values: Tensor, where: Tensor | None) -> Tensor:
    if where is None:
        return values.flatten(1).mean(1)
    where = where.to(values.dtype).expand_as(values).flatten(1)
    return (values.flatten(1) * where).sum(1) / where.sum(1).clamp(min=1.0)


def __getattr__(name: str):
    # `alignment_loss` (VA-VAE's vision-foundation alignment) has a file of its own; offered here with the other losses
    if name == "alignment_loss":
        from .alignment import alignment_loss

        return alignment_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

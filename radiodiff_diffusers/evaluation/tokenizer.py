"""How well a tokenizer rebuilds images: PSNR, SSIM, LPIPS, and rFID beside what rFID is between real images.

The conventions are LightningDiT's: PSNR between 8-bit images, mean of the images' dB; SSIM with a range of 2; LPIPS
(VGG) of the reconstruction before clamping; FID on Inception's 2048 features, on a sample of the posterior.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# (B, 3, H, W) uint8 -> (B, features)
Features = Callable[[Tensor], Tensor]


def to_uint8(image: Tensor) -> Tensor:
    """[-1, 1] to 8 bits, to the nearest."""
    return (127.5 * image.float() + 128).clamp(0, 255).to(torch.uint8)


def psnr(image: Tensor, reconstruction: Tensor) -> Tensor:
    """dB between 8-bit images, one value an image; infinite where they are equal."""
    difference = to_uint8(image).double() - to_uint8(reconstruction).double()
    return 20 * torch.log10(255 / difference.square().flatten(1).mean(1).sqrt())


def ssim(image: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity of images clamped to [-1, 1] (range 2, Gaussian window of 11), one value an image."""
    from ..training.losses import ssim_term

    return 1 - ssim_term(reconstruction.float().clamp(-1, 1), image.float().clamp(-1, 1))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Between Gaussians fitted to two sets of features, (images, features).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). The trace of the root is that of the symmetric S1^(1/2) S2 S1^(1/2),
    whose eigenvalues are real, also where there are fewer images than features.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a Frechet distance needs 2 images or more of each; got {len(first)} and {len(second)}")
    first, second = first.astype(np.float64), second.astype(np.float64)
    cov1, cov2 = np.atleast_2d(np.cov(first, rowvar=False)), np.atleast_2d(np.cov(second, rowvar=False))
    values, vectors = np.linalg.eigh(cov1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov2 @ root).clip(min=0)).sum()
    shift = np.square(first.mean(0) - second.mean(0)).sum()
    return float(max(shift + np.trace(cov1) + np.trace(cov2) - 2 * cross, 0.0))


def inception_features(device: str | torch.device = "cpu") -> Features:
    """The 2048 features of FID's Inception network; a ValueError where its weights cannot be had."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError("FID needs torch-fidelity: pip install torch-fidelity") from None
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device).eval()
    except Exception as error:  # a failed download comes as URLError, HTTPError, timeout or a torn file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise ValueError(f"Inception's weights for FID could not be downloaded ({reason}): connect once") from None

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return network(images.to(device))[0]

    return features


def split_distance(features: np.ndarray, seed: int = 0) -> float:
    """The Frechet distance between two random halves of the same images: what a perfect generator would get here."""
    order = np.random.default_rng(seed).permutation(len(features))
    half = len(features) // 2
    return frechet_distance(features[order[:half]], features[order[half : 2 * half]])


@torch.no_grad()
def evaluate_tokenizer(
    vae,
    dataset,
    batch_size: int = 4,
    sample: bool = True,
    lpips: str | Callable[[Tensor, Tensor], Tensor] | None = "vgg",
    fid: bool | Features = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Scores of a tokenizer on the images of a data set.

    Args:
        vae: An `AutoencoderKL`.
        dataset: Items with `image`, (channels, height, width) in [-1, 1].
        sample: Rebuild from a sample of the posterior, as published figures are; else from its mean.
        lpips: A network of LPIPS (`vgg`, `alex`, `squeeze`), a function of two batches, or None.
        fid: Whether to compute rFID, or a function that gives features of 8-bit colour images.
        seed: Of the posterior samples and of the halves.

    Returns:
        A dictionary with `images`, `psnr`, `ssim`, and where their weights can be had `lpips`, `rfid`, `split_fid`;
        `left_out` says of each missing one why.
    """
    from ..data.latents import posterior_noise

    if len(dataset) == 0:
        raise ValueError("no images to evaluate the tokenizer on")
    left_out: dict[str, str] = {}
    perceptual = _perceptual(lpips, left_out, device)
    features = _features(fid, left_out, device)
    vae = vae.to(device).eval()
    sums: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "lpips": []}
    real_features, fake_features = [], []
    for start in _steps(len(dataset), batch_size, progress):
        indices = range(start, min(start + batch_size, len(dataset)))
        image = torch.stack([torch.as_tensor(dataset[i]["image"]) for i in indices]).to(device)
        posterior = vae.encode(image.to(vae.dtype)).latent_dist
        latent = posterior.mean.float()
        if sample:
            noise = torch.stack([posterior_noise(latent.shape[1:], seed, i) for i in indices]).to(device)
            latent = latent + posterior.std.float() * noise
        reconstruction = vae.decode(latent.to(vae.dtype)).sample.float()
        sums["psnr"].append(psnr(image, reconstruction))
        sums["ssim"].append(ssim(image, reconstruction))
        if perceptual is not None:
            sums["lpips"].append(perceptual(image, reconstruction).flatten())
        if features is not None:
            for kept, x in ((real_features, image), (fake_features, reconstruction)):
                kept.append(features(_colour(to_uint8(x))).float().cpu())
    scores: dict[str, Any] = {"images": len(dataset)}
    scores |= {name: float(torch.cat(values).double().mean()) for name, values in sums.items() if values}
    if features is not None:
        real, fake = torch.cat(real_features).numpy(), torch.cat(fake_features).numpy()
        if len(dataset) < 4:
            left_out["rfid"] = f"needs 4 images or more, there are {len(dataset)}"
        else:
            scores |= {"rfid": frechet_distance(real, fake), "split_fid": split_distance(real, seed)}
    return scores | {"left_out": left_out}


def describe(scores: dict[str, Any]) -> str:
    """The scores as text, one line each."""
    units = {
        "psnr": " dB",
        "split_fid": " (between two halves of the real images)",
    }
    lines = [f"{scores['images']} images"]
    for name in ("psnr", "ssim", "lpips", "rfid", "split_fid"):
        if name in scores:
            lines.append(f"{name:10}{scores[name]:.4f}{units.get(name, '')}")
        elif name in scores["left_out"]:
            lines.append(f"{name:10}left out: {scores['left_out'][name]}")
    if "rfid" in scores and scores["images"] < 10_000:
        lines.append("FID of few images is too large by much: compare it with split_fid only, on as many images")
    return "\n".join(lines)


def _perceptual(which, left_out: dict[str, str], device):
    from ..training.losses import make_perceptual

    if which is None or callable(which):
        return which
    try:
        network = make_perceptual(which)
    except ValueError as error:
        if "choose" in str(error):
            raise
        left_out["lpips"] = str(error)
        return None
    return None if network is None else network.to(device)


def _features(which, left_out: dict[str, str], device) -> Features | None:
    if callable(which):
        return which
    if not which:
        return None
    try:
        return inception_features(device)
    except ValueError as error:
        left_out["rfid"] = str(error)
        return None


def _colour(image: Tensor) -> Tensor:
    return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image


def _steps(count: int, batch_size: int, progress: bool):
    from tqdm import tqdm

    return tqdm(range(0, count, batch_size), desc="tokenizer", unit="batch", disable=not progress)


# On the command line -----------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    parser.add_argument("tokenizer", help="diffusers folder, Hub id, or an original .ckpt or .pt")
    parser.add_argument("images", help="folder with a folder of images for each user")
    parser.add_argument("--size", type=int, default=256, metavar="PIXELS", help="size of the images (default: 256)")
    parser.add_argument("--count", type=int, metavar="N", help="so many images, spread over all (default: all)")
    parser.add_argument("--mode", action="store_true", help="rebuild from the posterior's mean, not from a sample")
    parser.add_argument("--lpips", default="vgg", choices=["vgg", "alex", "squeeze", "none"], help="default: vgg")
    parser.add_argument("--no-fid", action="store_true", help="leave rFID out")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="images at a time (default: 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the posterior samples (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    import json

    from ..commands import choose_device
    from ..convert.vavae import load_tokenizer
    from ..data.micro_doppler import MicroDopplerFolder

    vae = load_tokenizer(args.tokenizer)
    dataset = MicroDopplerFolder(args.images, size=args.size, channels=vae.config.in_channels)
    if args.count:
        chosen = np.linspace(0, len(dataset) - 1, min(args.count, len(dataset))).round().astype(int)
        dataset = dataset.subset(np.unique(chosen).tolist())
    scores = evaluate_tokenizer(
        vae,
        dataset,
        batch_size=args.batch_size,
        sample=not args.mode,
        lpips=None if args.lpips == "none" else args.lpips,
        fid=not args.no_fid,
        seed=args.seed,
        device=choose_device(args.device),
        progress=True,
    )
    print(json.dumps(scores, indent=1) if args.json else describe(scores))
    return 0

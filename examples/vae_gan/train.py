"""Train an autoencoder for radio maps: RadioDiff's VAE-GAN.

    accelerate launch examples/vae_gan/train.py --config examples/vae_gan/first_radio.yaml

First the autoencoder alone (L1 + L2 + LPIPS + a little KL), then, from `loss.disc_start` on, against a PatchGAN as
well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from radiodiff_diffusers.models.dual_autoencoder import DualAutoencoderKL
from radiodiff_diffusers.models.patch_discriminator import PatchDiscriminator
from radiodiff_diffusers.training import losses
from radiodiff_diffusers.training.config import (
    DataConfig,
    EMAConfig,
    GuardConfig,
    HubConfig,
    TrainConfig,
    ValidationConfig,
    option,
    parse_config,
)
from radiodiff_diffusers.training.data import make_samples, noise_like
from radiodiff_diffusers.training.latents import measure_scale
from radiodiff_diffusers.training.publish import finish_folder, push_folder
from radiodiff_diffusers.training.recipe import make_adamw, run_script, warm_start
from radiodiff_diffusers.training.run import Run, make_accelerator
from radiodiff_diffusers.training.validation import Validation


@dataclass
class ModelConfig:
    encodes: str = option(
        "image", "image: an autoencoder; condition: conditions in, image out; both: two encoders, fused"
    )
    fusion: str = option("concat", "of two encoders' latents: concat, add or cross_attention")
    channels: int = option(128, "width of the first level")
    multipliers: list[int] = option([1, 2, 4], "widths of the levels; each but the last halves the size")
    latent_channels: int = option(3, "channels of the latent")
    layers_per_block: int = option(2, "residual blocks a level")
    norm_groups: int = option(32, "groups of the group norms")
    scaling_factor: str = option("0.3", "latents are multiplied by this for the diffusion model; or measure: 1 / std")


@dataclass
class LossConfig:
    kl_weight: float = option(1e-6, "of the KL divergence")
    perceptual: str = option("vgg", "network of LPIPS: vgg, alex, squeeze; or none")
    perceptual_weight: float = option(1.0, "of LPIPS, at every pixel")
    squared: bool = option(True, "|x - r| + (x - r)^2; false: |x - r|")
    disc_start: int | None = option(50001, "autoencoder step from which on there is a discriminator; null: never")
    disc_weight: float = option(0.5, "of the adversarial loss, on top of the adaptive weight")
    disc_loss: str = option("hinge", "hinge or vanilla")
    adaptive_weight: bool = option(True, "balance the adversarial loss by its gradient; else disc_weight stands alone")
    extra: dict[str, float] = option(
        {}, "further terms and their weights: gradient, ssim, helmholtz, feature_matching"
    )
    mask_buildings: bool = option(False, "pixels in buildings do not count")


@dataclass
class VAEConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(weight_decay=0.01))
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.995, interval=10))
    guard: GuardConfig = field(default_factory=GuardConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    hub: HubConfig = field(default_factory=HubConfig)


USAGE = """
from {package} import {kind}

vae = {kind}.from_pretrained("{name}")
# {given}: planes in [-1, 1], (B, C, H, W): {planes}
latent = vae.encode({arguments}).latent_dist.mode() * vae.config.scaling_factor
decoded = vae.decode(latent / vae.config.scaling_factor).sample  # {images}
"""


def main(argv: list[str] | None = None) -> int:
    config = parse_config(VAEConfig, argv, __doc__)
    accelerator = make_accelerator(config.train)
    losses.check_terms(config.loss.extra, also=["feature_matching"])

    # 1. Data and models
    training_samples, validation_samples = make_samples(config.data, accelerator, config.train.seed)
    vae = make_vae(config)
    discriminator = PatchDiscriminator(in_channels=len(config.data.image_channels))
    perceptual = losses.make_perceptual(config.loss.perceptual)
    if perceptual is not None:
        perceptual.to(accelerator.device)
    if config.train.init_from:
        warm_start(vae, config.train.init_from, "vae")
    if config.train.compile:
        vae.compile()

    # 2. How it trains
    def encode(batch):
        given = {"image": (batch.get("image"),), "condition": (batch.get("condition"),)}
        inputs = given.get(config.model.encodes) or (batch["image"], batch["condition"])
        return vae.encode(*(x.to(accelerator.device) for x in inputs)).latent_dist

    def training_step(batch):
        loss, image = config.loss, batch["image"]
        posterior = encode(batch)
        latent = posterior.mean + posterior.std * noise_like(posterior.mean, batch, "posterior")
        reconstruction = vae.decode(latent).sample.float()

        error = losses.pixel_error(image, reconstruction, loss.squared)
        if loss.mask_buildings:
            error = error * batch["free"]
        distance = None if perceptual is None else perceptual(image, reconstruction)
        nll = losses.summed_nll(error, distance, loss.perceptual_weight)
        kl = losses.kl_divergence(posterior.mean.float(), posterior.logvar.float())
        total = nll + loss.kl_weight * kl
        log = {"reconstruction": error.detach().mean(), "nll": nll, "kl": kl}
        if distance is not None:
            log["perceptual"] = distance.mean()
        pixels = image[0].numel()  # the likelihood is summed over pixels, so the terms are, too
        for name, term in losses.image_terms(loss.extra, reconstruction, image, batch["free"]).items():
            total = total + pixels * term.mean()
            log[name] = term.mean()
        if not losses.gan_active(run.step, loss.disc_start):
            return {"vae": total}, log

        # the second phase
        fake_features = discriminator_features(discriminator, reconstruction)
        adversarial = losses.generator_loss(fake_features[-1])
        weight = loss.disc_weight
        if loss.adaptive_weight:
            weight = losses.adaptive_weight(nll, adversarial, vae.decoder.conv_out.weight, loss.disc_weight)
        total = total + weight * adversarial
        real_features = discriminator_features(discriminator, image)
        if loss.extra.get("feature_matching"):
            matching = losses.feature_matching(real_features[:-1], fake_features[:-1])
            total = total + loss.extra["feature_matching"] * pixels * matching
            log["feature_matching"] = matching
        real, fake = real_features[-1], discriminator(reconstruction.detach())
        log |= {"adversarial": adversarial, "adversarial_weight": weight, "real": real.mean(), "fake": fake.mean()}
        discriminating = losses.discriminator_loss(real, fake, loss.disc_loss)
        log["discriminator"] = discriminating
        return {"vae": total, "discriminator": discriminating}, log

    validate = Validation(
        validation_samples, config.validation, accelerator, config.train.output_dir,
        predict=lambda batch: vae.decode(encode(batch).mode()).sample,
    )  # fmt: skip

    # 3. The run
    run = Run(
        "vae_gan", config, accelerator,
        models={"vae": vae, "discriminator": discriminator},
        optimizers={
            "vae": make_adamw(vae, config.train),
            "discriminator": make_adamw(discriminator, config.train),
        },
        samples=training_samples,
        averaged=("vae",),
        about={"disc_start": config.loss.disc_start},
    )  # fmt: skip

    def export(folder: Path) -> None:
        scale = config.model.scaling_factor
        factor = measure_scale(encode, training_samples) if scale == "measure" else float(scale)
        vae.register_to_config(scaling_factor=factor)
        vae.save_pretrained(folder)
        finish_folder(folder, run.folder, config, "vae_gan", usage(config, config.hub.model_id or folder), run.step)
        if config.hub.push:
            push_folder(folder, config)

    return run.train(training_step, validate, export)


def make_vae(config: VAEConfig) -> AutoencoderKL | DualAutoencoderKL:
    model, outputs = config.model, len(config.data.image_channels)
    levels = len(model.multipliers)
    common = {
        "out_channels": outputs,
        "latent_channels": model.latent_channels,
        "block_out_channels": [model.channels * m for m in model.multipliers],
        "layers_per_block": model.layers_per_block,
        "norm_num_groups": model.norm_groups,
    }
    if model.encodes != "image" and not config.data.condition_channels:
        raise ValueError(f"model.encodes is {model.encodes!r}: name the planes in data.condition_channels")
    if model.encodes == "both":
        return DualAutoencoderKL(
            in_channels=outputs, condition_channels=len(config.data.condition_channels), fusion=model.fusion, **common
        )
    if model.encodes not in ("image", "condition"):
        raise ValueError(f"model.encodes is {model.encodes!r}; choose image, condition or both")
    return AutoencoderKL(
        in_channels=outputs if model.encodes == "image" else len(config.data.condition_channels),
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        sample_size=config.data.crop or 256,
        **common,
    )


def usage(config: VAEConfig, name: str | Path) -> str:
    """How the model card says to use this autoencoder."""
    images, conditions = (", ".join(n) for n in (config.data.image_channels, config.data.condition_channels))
    both = config.model.encodes == "both"
    given = {"image": images, "condition": conditions}
    given = given if both else {config.model.encodes: given[config.model.encodes]}
    return USAGE.format(
        name=name, images=images, arguments=", ".join(given), given=" and ".join(given),
        planes=" and ".join(given.values()), kind="DualAutoencoderKL" if both else "AutoencoderKL",
        package="radiodiff_diffusers" if both else "diffusers",
    )  # fmt: skip


def discriminator_features(discriminator: PatchDiscriminator, image: torch.Tensor) -> list[torch.Tensor]:
    """What each layer with an activation makes of an image, and last the scores."""
    features = []
    for layer in discriminator.main:
        image = layer(image)
        if isinstance(layer, torch.nn.LeakyReLU):
            features.append(image)
    return [*features, image]


if __name__ == "__main__":
    run_script(main)

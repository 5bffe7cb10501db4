"""Train or fine-tune a tokenizer aligned with a vision foundation model: VA-VAE.

    accelerate launch examples/va_vae/train.py --config examples/va_vae/micro_doppler_dinov2.yaml

The autoencoder's loss (L1 + LPIPS + a little KL, and a PatchGAN from `loss.disc_start` on) plus the alignment of its
latents with the features of a frozen DINOv2 or MAE. On spectrograms by user, or on radio maps (`data.kind: maps`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn

from radiodiff_diffusers.convert.vavae import (
    load_original_checkpoint,
    training_parts_from_original,
    vavae_from_original,
)
from radiodiff_diffusers.models.foundation_features import FoundationFeatures
from radiodiff_diffusers.models.patch_discriminator import PatchDiscriminator
from radiodiff_diffusers.training import losses
from radiodiff_diffusers.training.alignment import AlignmentProjection, adaptive_weight, alignment_loss
from radiodiff_diffusers.training.config import (
    EMAConfig,
    GuardConfig,
    HubConfig,
    TrainConfig,
    ValidationConfig,
    option,
    parse_config,
)
from radiodiff_diffusers.training.data import make_samples, noise_like
from radiodiff_diffusers.training.people import PeopleData, PeopleSamples, open_people
from radiodiff_diffusers.training.publish import finish_folder, push_folder
from radiodiff_diffusers.training.recipe import existing, make_adamw, run_script, warm_start
from radiodiff_diffusers.training.reconstruction import ReconstructionValidation
from radiodiff_diffusers.training.run import Run, make_accelerator

logger = logging.getLogger("va_vae")


@dataclass
class ModelConfig:
    channels: int = option(128, "width of the first level")
    multipliers: list[int] = option([1, 1, 2, 2, 4], "widths of the levels; each but the last halves the size")
    latent_channels: int = option(32, "channels of the latent: 32 of f16d32, 16 and 64 of its sisters")
    layers_per_block: int = option(2, "residual blocks a level")
    norm_groups: int = option(32, "groups of the group norms")
    decoder_attention: bool = option(True, "attention in the decoder's last level; false: as MAR's autoencoder")
    freeze: list[str] = option([], "parts that do not train: encoder, decoder.up_blocks.0, ... by diffusers' names")


@dataclass
class AlignmentConfig:
    foundation: str = option(
        "dinov2",
        "dinov2, mae, their -base and -small, or a timm name; untrained: a tiny random one, to try things; none",
    )
    weights: str | None = option(None, "file with the foundation model's weights; null: from the Hub")
    weight: float = option(0.1, "of the alignment, on top of the adaptive weight (the original's vf_weight)")
    adaptive: bool = option(True, "balance the alignment by its gradient at the encoder's last layer")
    reverse_proj: bool = option(True, "project latents up to the features; false: features down to latents")
    cos_margin: float = option(0.0, "cosine distances below it cost nothing")
    distance_margin: float = option(0.0, "differences of similarities below it cost nothing")
    cos_weight: float = option(1.0, "of the marginal cosine within the alignment")
    distance_weight: float = option(1.0, "of the marginal distance matrix within the alignment")
    imagenet_normalization: bool = option(False, "feed the foundation model as it was trained; the original does not")
    antialias: bool = option(False, "antialias where the image is resized for it (256 to 224); the original does not")
    half_precision: bool = option(False, "the frozen foundation model in bfloat16")


@dataclass
class LossConfig:
    kl_weight: float = option(1e-6, "of the KL divergence")
    perceptual: str = option("vgg", "network of LPIPS: vgg, alex, squeeze; or none")
    perceptual_weight: float = option(1.0, "of LPIPS, at every pixel")
    disc_start: int | None = option(2500, "autoencoder step from which on there is a discriminator; null: never")
    disc_weight: float = option(0.5, "of the adversarial loss, on top of the adaptive weight")
    disc_loss: str = option("hinge", "hinge or vanilla")
    adaptive_weight: bool = option(True, "balance the adversarial loss by its gradient; else disc_weight stands alone")
    disc_learning_rate: float | None = option(None, "of the discriminator; null: the autoencoder's")


@dataclass
class VAVAEData(PeopleData):
    kind: str = option("spectrograms", "spectrograms: images by user; maps: a data set of radio maps, as in vae_gan")


@dataclass
class VAVAEConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    stages: list[dict] = option(
        [], "one after the other: epochs or steps of each, and what differs from `loss` and `alignment` in it"
    )
    epochs: int | None = option(None, "how often to see all images; in place of train.max_steps")
    data: VAVAEData = field(default_factory=VAVAEData)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            learning_rate=1e-4, adam_betas=[0.5, 0.9], weight_decay=0.0, max_grad_norm=None
        )
    )
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.0))
    guard: GuardConfig = field(default_factory=GuardConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    hub: HubConfig = field(default_factory=HubConfig)


USAGE = """
import radiodiff_diffusers
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained("{name}")
latent = vae.encode(image).latent_dist.sample()    # image: (B, {channels}, H, W) in [-1, 1]
"""


def main(argv: list[str] | None = None) -> int:
    config = parse_config(VAVAEConfig, argv, __doc__)
    accelerator = make_accelerator(config.train)

    # 1. Data and models
    training_samples, validation_samples, channels = open_data(config, accelerator)
    check_size(training_samples, 2 ** (len(config.model.multipliers) - 1))
    stages = plan_stages(config, len(training_samples), accelerator.num_processes)
    vae = make_vae(config, channels)
    discriminator = PatchDiscriminator(in_channels=channels)
    foundation = make_foundation(config, accelerator.device)
    projection = None
    if foundation is not None:
        projection = AlignmentProjection(
            config.model.latent_channels, foundation.channels, config.alignment.reverse_proj
        )
    perceptual = losses.make_perceptual(config.loss.perceptual)
    if perceptual is not None:
        perceptual.to(accelerator.device)
    if config.train.init_from:
        start_from(config.train.init_from, vae, discriminator, projection)
    freeze(vae, config.model.freeze)
    check_trainable(vae, stages)
    if config.train.gradient_checkpointing:
        vae.enable_gradient_checkpointing()
    if config.train.compile:
        vae.compile()

    # 2. How it trains
    def training_step(batch):
        stage = stage_at(stages, run.step)
        loss, image = stage.loss, batch["image"]
        posterior = vae.encode(image).latent_dist
        latent = posterior.mean + posterior.std * noise_like(posterior.mean, batch, "posterior")
        reconstruction = vae.decode(latent).sample.float()

        error = losses.pixel_error(image, reconstruction, squared=False)
        distance = None if perceptual is None else perceptual(image, reconstruction)
        nll = losses.summed_nll(error, distance, loss.perceptual_weight)
        kl = losses.kl_divergence(posterior.mean.float(), posterior.logvar.float())
        total = nll + loss.kl_weight * kl
        rec_loss = error.detach().mean()
        log = {"nll_loss": nll, "kl_loss": kl}
        if distance is not None:
            log["perceptual"] = distance.mean()
            rec_loss = rec_loss + distance.detach().mean()
        log["rec_loss"] = rec_loss

        if foundation is not None and stage.alignment.weight:
            terms = alignment_terms(stage.alignment, latent, image)
            vf_loss = terms["vf_loss"]
            weight = torch.tensor(stage.alignment.weight, device=image.device)
            if stage.alignment.adaptive:
                weight = adaptive_weight(nll, vf_loss, vae.encoder.conv_out.weight, stage.alignment.weight)
            total = total + weight * vf_loss
            log |= {**terms, "vf_weight": weight}

        if losses.gan_active(run.step - stage.start, loss.disc_start):
            adversarial = losses.generator_loss(discriminator(reconstruction))
            weight = torch.tensor(loss.disc_weight, device=image.device)
            if loss.adaptive_weight:
                weight = losses.adaptive_weight(nll, adversarial, vae.decoder.conv_out.weight, loss.disc_weight)
            total = total + weight * adversarial
            # on the same reconstruction, from before the autoencoder's step
            real, fake = discriminator(image), discriminator(reconstruction.detach())
            discriminating = losses.discriminator_loss(real, fake, loss.disc_loss)
            log |= {"g_loss": adversarial, "d_weight": weight, "disc_loss": discriminating}
            log |= {"logits_real": real.mean(), "logits_fake": fake.mean()}
            return {"vae": total, "discriminator": discriminating}, log
        return {"vae": total}, log

    def alignment_terms(alignment: AlignmentConfig, latent, image):
        projected, features = projection(latent, foundation(image).float())
        cosine, distance = alignment_loss(projected, features, alignment.cos_margin, alignment.distance_margin)
        vf_loss = alignment.cos_weight * cosine + alignment.distance_weight * distance
        return {"vf_loss": vf_loss, "vf_cosine": cosine, "vf_distance": distance}

    # 3. How it is validated
    def rebuild(batch):
        posterior = vae.encode(batch["image"].to(accelerator.device)).latent_dist
        return vae.decode(posterior.mode()).sample, posterior

    def align(batch, posterior):
        alignment = stage_at(stages, run.step).alignment
        each = [
            alignment_terms(alignment, posterior.mean[i : i + 1], batch["image"][i : i + 1].to(accelerator.device))
            for i in range(len(batch["image"]))
        ]
        return {"vf_loss": torch.stack([terms["vf_loss"] for terms in each])}

    validate = ReconstructionValidation(
        validation_samples, config.validation, accelerator, config.train.output_dir,
        rebuild, perceptual, align if foundation is not None else None,
    )  # fmt: skip

    # 4. The run
    models = {"vae": vae, "discriminator": discriminator}
    if projection is not None:
        models["projection"] = projection
    rate = config.loss.disc_learning_rate or config.train.learning_rate
    run = Run(
        "va_vae", config, accelerator,
        models=models,
        optimizers={
            "vae": make_adamw(nn.ModuleList([vae] if projection is None else [vae, projection]), config.train),
            "discriminator": make_adamw(discriminator, config.train, rate / config.train.learning_rate),
        },
        samples=training_samples,
        averaged=("vae",),
        about={"disc_start": first_disc_start(stages)},
        best_by="rec_loss",
        tracked_as={"loss": "train", "validation": "val"},  # val/rec_loss, train/vf_loss, ... as the original
    )  # fmt: skip

    def export(folder: Path) -> None:
        vae.save_pretrained(folder)
        usage = USAGE.format(name=config.hub.model_id or folder, channels=channels)
        finish_folder(folder, run.folder, config, "va_vae", usage, run.step)
        if config.hub.push:
            push_folder(folder, config)

    return run.train(training_step, validate, export)


# Data and models ---------------------------------------------------------------------------------------------------


def open_data(config: VAVAEConfig, accelerator):
    """Training and validation samples, and how many channels their images have."""
    data = config.data
    if data.kind == "maps":
        if data.image_channels == ["spectrogram"]:
            data.image_channels = ["map"]
        return *make_samples(data, accelerator, config.train.seed), len(data.image_channels)
    if data.kind != "spectrograms":
        raise ValueError(f"data.kind is {data.kind!r}; choose spectrograms or maps")
    training, validation = open_people(data, accelerator)
    samples = PeopleSamples(training, data, config.train.seed)
    return samples, PeopleSamples(validation, data) if config.validation.steps else None, data.channels


def check_size(samples, step: int) -> None:
    """A tokenizer drops what is left over of an image that it cannot halve often enough."""
    if samples.config.streaming:
        return
    image = samples[(0, 0)].get("image")  # none where the file is broken, which the run's guard says
    if image is not None and any(side % step for side in image.shape[-2:]):
        height, width = image.shape[-2:]
        raise ValueError(f"images are {height} x {width}: this tokenizer needs multiples of {step} (data.size, crop)")


def make_vae(config: VAVAEConfig, channels: int) -> AutoencoderKL:
    model = config.model
    inner = len(model.multipliers) - 1
    last_up = "AttnUpDecoderBlock2D" if model.decoder_attention else "UpDecoderBlock2D"
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * inner + ["AttnDownEncoderBlock2D"],
        up_block_types=[last_up] + ["UpDecoderBlock2D"] * inner,
        block_out_channels=[model.channels * m for m in model.multipliers],
        layers_per_block=model.layers_per_block,
        latent_channels=model.latent_channels,
        norm_num_groups=model.norm_groups,
        sample_size=config.data.crop or config.data.size,
        scaling_factor=1.0,  # statistics of the latents are measured when they are extracted
    )


def make_foundation(config: VAVAEConfig, device: torch.device) -> FoundationFeatures | None:
    """The frozen model to align with, or None."""
    alignment = config.alignment
    if alignment.foundation in ("none", None, ""):
        return None
    options = {
        "downsample": 2 ** (len(config.model.multipliers) - 1),
        "imagenet_normalization": alignment.imagenet_normalization,
        "antialias": alignment.antialias,
    }
    if alignment.foundation == "untrained":
        from timm.models.vision_transformer import VisionTransformer

        logger.warning("alignment.foundation is untrained: good for trying the recipe, its features mean nothing")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 0}
            made = FoundationFeatures(VisionTransformer(dynamic_img_size=True, **sizes), **options)
    else:
        try:
            made = FoundationFeatures.from_pretrained(alignment.foundation, alignment.weights, **options)
        except OSError as error:  # no network, or no such file on the Hub
            raise ValueError(f"{error}: alignment.weights FILE, or alignment.foundation none") from None
    return made.to(device, torch.bfloat16 if alignment.half_precision else None)


@torch.no_grad()
def start_from(where: str, vae: AutoencoderKL, discriminator: nn.Module, projection: nn.Module | None) -> None:
    """Weights to begin with, all of them or an error: an original checkpoint file, a run's checkpoint, a folder."""
    path = existing(where)
    others = {"discriminator": discriminator, "projection": projection}
    if path.is_file():
        checkpoint = load_original_checkpoint(path)
        tensors = vavae_from_original(checkpoint, channels=vae.config.in_channels).state_dict()
        own = vae.state_dict()
        strange = sorted(tensors.keys() ^ own.keys()) or [k for k in own if own[k].shape != tensors[k].shape]
        if strange:
            raise ValueError(
                f"train.init_from: {where} holds another tokenizer than the configuration asks for: {strange[0]} and "
                f"{len(strange) - 1} more tensors do not fit"
            )
        vae.load_state_dict(tensors)
        parts = training_parts_from_original(checkpoint)
        for name, model in others.items():
            if model is None:
                continue
            fits = name in parts and {k: v.shape for k, v in parts[name].items()} == {
                k: v.shape for k, v in model.state_dict().items() if k in parts[name]
            }
            if fits:
                # the file has no counters of batch norm where it is an older one
                model.load_state_dict(parts[name], strict=False)
            logger.warning("%s starts %s", name, "from the checkpoint's" if fits else "anew: the checkpoint has none")
        return
    warm_start(vae, where, "vae")
    for name, model in others.items():
        if model is not None and (path / "models.safetensors").exists():
            warm_start(model, where, name)
        elif model is not None:
            logger.warning("%s starts anew: %s holds the tokenizer only", name, where)


def freeze(vae: nn.Module, parts: list[str]) -> None:
    for part in parts:
        found = [p for name, p in vae.named_parameters() if name == part or name.startswith(part + ".")]
        if not found:
            tops = ", ".join(name for name, _ in vae.named_children())
            raise ValueError(f"model.freeze names {part!r}, which the tokenizer does not have; it has {tops}, ...")
        for parameter in found:
            parameter.requires_grad_(False)


# Stages ------------------------------------------------------------------------------------------------------------


@dataclass
class Stage:
    """A stretch of the run, from step `start` on."""

    start: int
    loss: LossConfig
    alignment: AlignmentConfig


def plan_stages(config: VAVAEConfig, images: int, processes: int) -> list[Stage]:
    """The stages of the run; sets `train.max_steps` where epochs or stages say how long it is."""
    batch = config.train.batch_size * config.train.gradient_accumulation_steps * processes

    def steps(epochs: float) -> int:
        return max(1, math.ceil(epochs * images / batch))

    if config.epochs is not None:
        if config.stages:
            raise ValueError("epochs and stages are both given: say the length of the run by one of them")
        set_length(config.train, steps(config.epochs), "epochs")
    stages, start = [], 0
    for number, given in enumerate(config.stages, 1):
        given, where = dict(given), f"stage {number}"
        length = {k: given.pop(k) for k in ("epochs", "steps") if k in given}
        if len(length) != 1:
            raise ValueError(f"{where} must have either epochs or steps; it has {', '.join(length) or 'neither'}")
        loss, alignment = take_stage(given, config.loss, where), take_stage(given, config.alignment, where)
        if given:
            known = sorted(_stage_keys(LossConfig) | _stage_keys(AlignmentConfig))
            raise ValueError(f"{where}: unknown key {next(iter(given))!r}; known: epochs, steps, {', '.join(known)}")
        stages.append(Stage(start, loss, alignment))
        start += steps(float(length["epochs"])) if "epochs" in length else int(length["steps"])
    if not stages:
        return [Stage(0, config.loss, config.alignment)]
    set_length(config.train, start, "stages")
    return stages


def set_length(train: TrainConfig, steps: int, said_by: str) -> None:
    if train.max_steps not in (steps, TrainConfig().max_steps):
        logger.warning(
            "the run takes %d steps, as %s say, and not train.max_steps %d", steps, said_by, train.max_steps
        )
    train.max_steps = steps


# what decides how the models are made cannot change on the way
_FIXED = (
    "foundation", "weights", "reverse_proj", "imagenet_normalization", "antialias", "half_precision", "perceptual"
)  # fmt: skip
_RENAMED = {"vf_weight": "weight"}  # `weight` alone would not say of what


def _stage_keys(cls) -> set[str]:
    names = {f.name for f in fields(cls)} - {*_FIXED, "disc_learning_rate"}
    back = {ours: theirs for theirs, ours in _RENAMED.items()}
    return {back.get(name, name) for name in names}


def take_stage(given: dict, base, where: str):
    """`base` with those of the given values that are its own, which are taken out of `given`."""
    from radiodiff_diffusers.training.config import build_config

    mine = {k: given.pop(k) for k in list(given) if k in _stage_keys(type(base))}
    return build_config(type(base), {_RENAMED.get(k, k): v for k, v in mine.items()}, where, base=replace(base))


def stage_at(stages: list[Stage], step: int) -> Stage:
    return next(stage for stage in reversed(stages) if stage.start <= step)


def first_disc_start(stages: list[Stage]) -> int | None:
    """The first step of the run with a discriminator."""
    for stage, following in zip(stages, [*stages[1:], None], strict=True):
        if stage.loss.disc_start is not None:
            step = stage.start + stage.loss.disc_start
            if following is None or step < following.start:
                return step
    return None


def check_trainable(vae: AutoencoderKL, stages: list[Stage]) -> None:
    """An adaptive weight is measured at a layer, which must train."""
    for stage in stages:
        alignment, loss = stage.alignment, stage.loss
        aligned = alignment.foundation != "none" and alignment.weight and alignment.adaptive
        if aligned and not vae.encoder.conv_out.weight.requires_grad:
            raise ValueError(
                "model.freeze holds the encoder's last layer, where the alignment is balanced: set "
                "alignment.foundation none, or leave encoder.conv_out out of model.freeze"
            )
        if loss.disc_start is not None and loss.adaptive_weight and not vae.decoder.conv_out.weight.requires_grad:
            raise ValueError(
                "model.freeze holds the decoder's last layer, where the discriminator is balanced: set "
                "loss.disc_start null, or loss.adaptive_weight false"
            )


if __name__ == "__main__":
    run_script(main)

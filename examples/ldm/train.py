"""Train RadioDiff's conditional diffusion model, on an autoencoder's latents or (`model.vae: none`) on pixels.

    accelerate launch examples/ldm/train.py --config examples/ldm/radio_train.yaml --model.vae runs/first_radio/model

The result is a folder for `RadioDiffPipeline.from_pretrained`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from radiodiff_diffusers import ConstSDEScheduler, RadioDiffPipeline, RadioDiffUNet2DModel
from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS
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
from radiodiff_diffusers.training.data import make_samples
from radiodiff_diffusers.training.diffusion import DiffusionLossConfig, diffusion_step, predict_maps
from radiodiff_diffusers.training.latents import build_latents
from radiodiff_diffusers.training.publish import finish_folder, push_folder
from radiodiff_diffusers.training.recipe import (
    load_frozen_vae,
    load_imagenet_encoder,
    make_adamw,
    run_script,
    warm_start,
)
from radiodiff_diffusers.training.run import Run, make_accelerator
from radiodiff_diffusers.training.validation import Validation


@dataclass
class ModelConfig:
    preset: str = option("base", "of the U-Net: " + ", ".join(RADIODIFF_UNET_PRESETS))
    unet: dict = option({}, "arguments of the U-Net that differ from the preset's")
    encoder_weights: str = option("none", "imagenet: begin with torchvision's Swin-B, as the original does; or none")
    vae: str = option("none", "autoencoder: folder or Hub id; none: diffuse pixels")
    scaling_factor: float | None = option(None, "of the latents; else the one in the autoencoder's config")
    cache_latents: str | None = option(None, "folder to keep the latents in, so that the autoencoder runs only once")
    gain_scale: str = option("radiomapseer", "what gray values mean: radiomapseer or indoor")


@dataclass
class LDMConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: DiffusionLossConfig = field(default_factory=DiffusionLossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.999, start=10000, interval=10))
    guard: GuardConfig = field(default_factory=GuardConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    hub: HubConfig = field(default_factory=HubConfig)


USAGE = """
from radiodiff_diffusers import RadioDiffPipeline, Scene

pipe = RadioDiffPipeline.from_pretrained("{name}")
scene = Scene("buildings.png", transmitter=(120, 87))
pipe(scene).maps[0].save("map.png")
"""


def main(argv: list[str] | None = None) -> int:
    config = parse_config(LDMConfig, argv, __doc__)
    accelerator = make_accelerator(config.train)
    losses.check_terms(config.loss.extra)

    # 1. Models and data
    vae = load_frozen_vae(config.model.vae, accelerator.device)
    unet = make_unet(config, vae)
    config.data.condition_channels = list(unet.config.condition_channels)
    training_samples, validation_samples = make_samples(config.data, accelerator, config.train.seed)
    scheduler = ConstSDEScheduler(clip_sample=vae is None)
    if config.model.encoder_weights == "imagenet":
        load_imagenet_encoder(unet)
    if config.train.init_from:
        warm_start(unet, config.train.init_from, "unet")
    if config.train.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.train.compile:
        unet.compile()
    if config.model.cache_latents and vae is not None:
        training_samples.latents = build_latents(config.model.cache_latents, vae, training_samples, accelerator)

    # 2. How it trains
    def training_step(batch):
        loss, log = diffusion_step(unet, scheduler, vae, batch, config.loss)
        return {"unet": loss}, log

    # 3. How it is validated: the pipeline that users call, on a few scenes
    def pipeline():
        made = RadioDiffPipeline(
            unet, scheduler, vae,
            num_inference_steps=config.validation.inference_steps, gain_scale=config.model.gain_scale,
        )  # fmt: skip
        made.set_progress_bar_config(disable=True)
        return made

    validate = Validation(
        validation_samples, config.validation, accelerator, config.train.output_dir,
        predict=lambda batch: predict_maps(pipeline(), batch),
    )  # fmt: skip

    # 4. The run
    run = Run(
        "ldm", config, accelerator,
        models={"unet": unet},
        optimizers={"unet": make_adamw(unet, config.train)},
        samples=training_samples,
        averaged=("unet",),
    )  # fmt: skip

    def export(folder: Path) -> None:
        pipeline().save_pretrained(folder)
        finish_folder(folder, run.folder, config, "ldm", USAGE.format(name=config.hub.model_id or folder), run.step)
        if config.hub.push:
            push_folder(folder, config)

    return run.train(training_step, validate, export)


def make_unet(config: LDMConfig, vae) -> RadioDiffUNet2DModel:
    """The preset with the configuration's changes, as wide in channels as what it diffuses."""
    model, data = config.model, config.data
    if model.preset not in RADIODIFF_UNET_PRESETS:
        raise ValueError(f"model.preset is {model.preset!r}; choose one of {', '.join(RADIODIFF_UNET_PRESETS)}")
    if len(data.image_channels) != 1 and vae is None:
        raise ValueError("a model of pixels predicts one plane: give one name in data.image_channels")
    arguments = dict(RADIODIFF_UNET_PRESETS[model.preset])
    arguments["in_channels"] = len(data.image_channels) if vae is None else vae.config.latent_channels
    if data.condition_channels:
        arguments["condition_channels"] = list(data.condition_channels)
    if vae is None and (config.model.cache_latents or config.model.scaling_factor):
        raise ValueError(
            "model.cache_latents and model.scaling_factor belong to an autoencoder, but model.vae is none"
        )
    if vae is not None and config.loss.mask_buildings:
        raise ValueError("loss.mask_buildings is for a model of pixels, but there is an autoencoder: turn it off")
    if config.loss.extra and config.model.cache_latents:
        raise ValueError("loss.extra compares maps, which a run on cached latents does not read: turn one off")
    if vae is not None and model.scaling_factor:
        vae.register_to_config(scaling_factor=model.scaling_factor)
    return RadioDiffUNet2DModel(**{**arguments, **model.unet})


if __name__ == "__main__":
    run_script(main)

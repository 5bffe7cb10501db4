"""Adapt a trained RadioDiff model to other maps with LoRA: a small file instead of a second model.

    accelerate launch examples/lora/train.py --config examples/lora/ray_traced.yaml --model.base runs/radio_train/model

The result is an adapter for `pipe.load_lora_weights(folder)`; the base model is not changed by a bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from radiodiff_diffusers import DEFAULT_MODEL, RadioDiffPipeline
from radiodiff_diffusers.lora import adapter_of
from radiodiff_diffusers.training import losses
from radiodiff_diffusers.training.adapters import AdapterConfig, add_adapter, find_lora_targets
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
from radiodiff_diffusers.training.publish import finish_folder, public, push_folder
from radiodiff_diffusers.training.recipe import existing, make_adamw, run_script
from radiodiff_diffusers.training.run import Run, make_accelerator
from radiodiff_diffusers.training.validation import Validation


@dataclass
class ModelConfig:
    base: str = option("default", "pipeline to adapt: folder or Hub id; default: the model in the package")


@dataclass
class MapAdapterConfig(AdapterConfig):
    targets: list[str] = option(
        ["attention", "convolutions"],
        "attention, convolutions, condition_encoder, output, layer names or regular expressions",
    )
    channels: dict[str, str] = option({}, "channels of the base, and what the adapter sees in place of each")
    half: bool = option(False, "save the adapter in float16: half the file, the same map to 0.01 dB")


@dataclass
class LoRAConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: MapAdapterConfig = field(default_factory=MapAdapterConfig)
    loss: DiffusionLossConfig = field(default_factory=DiffusionLossConfig)
    data: DataConfig = field(default_factory=DataConfig)
    # the base's running statistics are not the adapter's to change
    train: TrainConfig = field(default_factory=lambda: TrainConfig(weight_decay=0.0, batch_norm_eval=True))
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.99))
    guard: GuardConfig = field(default_factory=GuardConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    hub: HubConfig = field(default_factory=HubConfig)


USAGE = """
from radiodiff_diffusers import DEFAULT_MODEL, RadioDiffPipeline, Scene

pipe = RadioDiffPipeline.from_pretrained({base})
pipe.load_lora_weights("{name}")
pipe(Scene("buildings.png", transmitter=(120, 87))).maps[0].save("map.png")
"""


def main(argv: list[str] | None = None) -> int:
    config = parse_config(LoRAConfig, argv, __doc__)
    accelerator = make_accelerator(config.train)
    losses.check_terms(config.loss.extra)
    if not config.train.batch_norm_eval:
        raise ValueError("train.batch_norm_eval false would change the base model's statistics: leave it true")

    # 1. The base model, frozen, and the adapter in it
    base = DEFAULT_MODEL if config.model.base == "default" else str(existing(config.model.base, "model.base"))
    pipe = RadioDiffPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    unet, vae, scheduler = pipe.unet, pipe.vae, pipe.scheduler
    if vae is not None:
        vae.requires_grad_(False).eval().to(accelerator.device)
    targets = find_lora_targets(unet, config.lora.targets)
    if config.loss.mean_map == 1.0:  # one step from an empty start has no use for the second decoder
        targets = [name for name in targets if not name.startswith("noise_decoder.")]
    add_adapter(unet, config.lora, targets, accelerator)

    instead = config.lora.channels
    if unknown := set(instead) - set(unet.config.condition_channels):
        raise ValueError(f"lora.channels: the base sees no {', '.join(sorted(unknown))} that could be replaced")
    config.data.condition_channels = [instead.get(name, name) for name in unet.config.condition_channels]
    training_samples, validation_samples = make_samples(config.data, accelerator, config.train.seed)

    # 2. How it trains
    def training_step(batch):
        loss, log = diffusion_step(unet, scheduler, vae, batch, config.loss)
        return {"unet": loss}, log

    validate = Validation(
        validation_samples, config.validation, accelerator, config.train.output_dir,
        predict=lambda batch: predict_maps(pipe, batch),
    )  # fmt: skip

    # 3. The run
    run = Run(
        "lora", config, accelerator,
        models={"unet": unet},
        optimizers={"unet": make_adamw(unet, config.train)},
        samples=training_samples,
        averaged=("unet",),
    )  # fmt: skip

    def export(folder: Path) -> None:
        adapter = adapter_of(unet, "unet", condition_channels=config.data.condition_channels if instead else None)
        if config.lora.half:
            adapter["unet_lora_layers"] = {name: w.half() for name, w in adapter["unet_lora_layers"].items()}
        RadioDiffPipeline.save_lora_weights(folder, **adapter)
        named = "DEFAULT_MODEL" if base == DEFAULT_MODEL else f'"{public(config.model.base)}"'
        usage = USAGE.format(base=named, name=config.hub.model_id or folder)
        finish_folder(folder, run.folder, config, "lora", usage, run.step)
        if config.hub.push:
            push_folder(folder, config)

    return run.train(training_step, validate, export)


if __name__ == "__main__":
    run_script(main)

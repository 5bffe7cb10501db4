"""Train a class-conditioned diffusion transformer on extracted latents: LightningDiT.

    radiodiff latents extract data/micro_doppler -t runs/micro_doppler_dinov2/model -o data/latents
    accelerate launch examples/lightningdit/train.py --config examples/lightningdit/micro_doppler_xl.yaml

Flow matching from noise (time 0) to data (time 1). The result is a folder for `LightningDiTPipeline.from_pretrained`;
with `model.base` it is a LoRA adapter of that pipeline, for `pipe.load_lora_weights`.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from radiodiff_diffusers.convert.lightningdit import lightningdit_from_original
from radiodiff_diffusers.convert.vavae import load_original_checkpoint, load_tokenizer, set_latent_statistics
from radiodiff_diffusers.lora import adapter_of
from radiodiff_diffusers.models.lightning_dit import LightningDiTTransformer2DModel, lightning_dit_config
from radiodiff_diffusers.pipelines.pipeline_lightningdit import LightningDiTPipeline
from radiodiff_diffusers.training.adapters import AdapterConfig, add_adapter, find_lora_targets
from radiodiff_diffusers.training.config import (
    EMAConfig,
    GuardConfig,
    HubConfig,
    TrainConfig,
    ValidationConfig,
    option,
    parse_config,
)
from radiodiff_diffusers.training.flow import FlowLossConfig, FlowValidation, flow_step
from radiodiff_diffusers.training.people import LatentData, LatentSamples, count_classes, open_latents
from radiodiff_diffusers.training.publish import finish_folder, public, push_folder
from radiodiff_diffusers.training.recipe import existing, make_adamw, run_script, warm_start
from radiodiff_diffusers.training.run import Run, make_accelerator

logger = logging.getLogger("lightningdit")


@dataclass
class ModelConfig:
    size: str = option("XL/1", "S, B, L, XL, 1p0B or 1p6B, and the patch: /1 or /2")
    transformer: dict = option({}, "arguments of the transformer that differ from the size's")
    qk_norm: bool = option(True, "norm on queries and keys: keeps bf16 from diverging; the released models have none")
    vae: str = option("none", "the tokenizer that the latents are of: folder, Hub id, or original checkpoint")
    timestep_shift: float = option(0.3, "of the published pipeline's time grid; 0 for none")
    base: str = option("none", "train a LoRA adapter of this pipeline (folder or Hub id), and nothing else")


@dataclass
class UsersAdapterConfig(AdapterConfig):
    targets: list[str] = option(
        ["all", "classes"],
        "attention, feed_forward, all (both and the modulation), classes (the label table), layer names or regular "
        "expressions",
    )


@dataclass
class FlowValidationConfig(ValidationConfig):
    guidance_scale: float = option(4.0, "of the pictures")
    inference_steps: int = option(50, "points in time of the pictures")
    scenes: int = option(64, "how many held-out latents, always the same")


@dataclass
class DiTConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: UsersAdapterConfig = field(default_factory=UsersAdapterConfig)
    loss: FlowLossConfig = field(default_factory=FlowLossConfig)
    data: LatentData = field(default_factory=LatentData)
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(learning_rate=2e-4, adam_betas=[0.9, 0.95], weight_decay=0.0)
    )
    ema: EMAConfig = field(default_factory=lambda: EMAConfig(decay=0.9999))
    guard: GuardConfig = field(default_factory=GuardConfig)
    validation: FlowValidationConfig = field(default_factory=FlowValidationConfig)
    hub: HubConfig = field(default_factory=HubConfig)


USAGE = """
from radiodiff_diffusers import LightningDiTPipeline

pipe = LightningDiTPipeline.from_pretrained("{name}")
images = pipe(class_labels=[0, 0, 1], num_inference_steps=50, guidance_scale={scale:g}).images
"""

ADAPTER_USAGE = """
from radiodiff_diffusers import LightningDiTPipeline

pipe = LightningDiTPipeline.from_pretrained("{base}"){classes}
pipe.load_lora_weights("{name}")
images = pipe(class_labels=[0, 0, 1], num_inference_steps=50, guidance_scale={scale:g}).images
"""


def main(argv: list[str] | None = None) -> int:
    config = parse_config(DiTConfig, argv, __doc__)
    accelerator = make_accelerator(config.train)
    is_adapter = config.model.base not in ("none", None, "")

    # 1. Data and models
    if is_adapter:
        vae, transformer, scheduler, latents, new_table = open_base(config)
        targets = find_lora_targets(transformer, config.lora.targets, transformer.lora_target_modules)
        add_adapter(transformer, config.lora, targets, accelerator)
    else:
        if config.model.vae in ("none", None, ""):
            raise ValueError("model.vae: name the tokenizer that the latents in data.source were extracted with")
        vae = load_tokenizer(config.model.vae).requires_grad_(False)
        latents = open_latents(config.data, vae, config.train.seed)
        set_normalisation(vae, latents, config.data)
        transformer = make_transformer(config, latents)
        shift = 1 / config.model.timestep_shift if config.model.timestep_shift else 1.0
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    # labels are dropped by the training step, whose draws belong to the sample and not to the process
    transformer.register_to_config(class_dropout_prob=0.0)
    if config.train.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.train.compile:
        transformer.compile()
    training_samples = LatentSamples(latents, config.data, config.train.seed)
    validation_samples = LatentSamples(latents, config.data, config.train.seed, training=False)

    # 2. How it trains
    def training_step(batch):
        loss, log = flow_step(transformer, batch, config.loss, run.step)
        return {"transformer": loss}, log

    # 3. How it is validated: the error on held-out latents, and pictures of the pipeline that users call
    def pipeline():
        made = LightningDiTPipeline(vae, transformer, scheduler)
        made.set_progress_bar_config(disable=True)
        return made.to(accelerator.device)

    validate = FlowValidation(
        validation_samples, config.validation, accelerator, config.train.output_dir, transformer, pipeline,
        config.loss.cosine_weight,
    )  # fmt: skip

    # 4. The run
    run = Run(
        "lightningdit", config, accelerator,
        models={"transformer": transformer},
        optimizers={"transformer": make_adamw(transformer, config.train)},
        samples=training_samples,
        averaged=("transformer",),
        best_by="velocity_mse",
    )  # fmt: skip

    def export(folder: Path) -> None:
        name, scale = config.hub.model_id or folder, config.validation.guidance_scale
        if is_adapter:
            LightningDiTPipeline.save_lora_weights(folder, **adapter_of(transformer, "transformer"))
            usage = ADAPTER_USAGE.format(base=public(config.model.base), name=name, scale=scale, classes=new_table)
        else:
            transformer.register_to_config(class_dropout_prob=config.loss.label_dropout)
            pipeline().save_pretrained(folder)
            usage = USAGE.format(name=name, scale=scale)
        finish_folder(folder, run.folder, config, "lightningdit", usage, run.step)
        if config.hub.push:
            push_folder(folder, config)

    return run.train(training_step, validate, export)


def open_base(config: DiTConfig):
    """The pipeline to adapt in its parts, the latents of the new classes, normalised as the base's were, and the line
    of code that makes the base take the adapter.

    The base's classes become the new ones, number by number; where there are more than it has, its label table is
    made anew, which is the same at any time.
    """
    for given, name in ((config.model.vae, "model.vae"), (config.train.init_from, "train.init_from")):
        if given not in ("none", None, ""):
            raise ValueError(f"{name} is {given}, but model.base brings its own weights and tokenizer: set it to none")
    base = LightningDiTPipeline.from_pretrained(config.model.base)
    vae, transformer = base.vae.requires_grad_(False), base.transformer
    latents = open_latents(config.data, vae, config.train.seed)
    statistics = vae.config.latents_mean, vae.config.latents_std
    latents.mean, latents.std = (None if v is None else torch.tensor(v).view(-1, 1, 1) for v in statistics)
    latents.multiplier = vae.config.scaling_factor
    classes = count_classes(config.data, latents)
    new_table = ""
    if classes > transformer.config.num_classes:
        transformer.set_num_classes(classes)
        new_table = f"\npipe.transformer.set_num_classes({classes})"
    return vae, transformer, base.scheduler, latents, new_table


def make_transformer(config: DiTConfig, latents) -> LightningDiTTransformer2DModel:
    """A new transformer for these latents and classes, with the weights of `train.init_from` if it is given."""
    channels, height, width = latents[0]["latents"].shape
    classes = count_classes(config.data, latents)
    arguments = lightning_dit_config(
        config.model.size, in_channels=channels, sample_size=max(height, width), qk_norm=config.model.qk_norm
    )
    arguments |= config.model.transformer
    if "num_classes" in config.model.transformer:
        raise ValueError("classes are the data's: set data.num_classes, not num_classes of model.transformer")
    known = set(inspect.signature(LightningDiTTransformer2DModel.__init__).parameters) - {"self", "num_classes"}
    if unknown := sorted(config.model.transformer.keys() - known):
        raise ValueError(f"model.transformer has no {unknown[0]!r}; known: {', '.join(sorted(known))}")
    for name, size in (("height", height), ("width", width)):
        if size % arguments["patch_size"]:
            raise ValueError(f"latents of {name} {size} cannot be cut in patches of {arguments['patch_size']}")
    transformer = LightningDiTTransformer2DModel(**arguments, num_classes=classes)
    if config.train.init_from:
        start_from(config.train.init_from, transformer)
    return transformer


@torch.no_grad()
def start_from(where: str, transformer: LightningDiTTransformer2DModel) -> None:
    """Weights to begin with, all of them or an error; other classes start from the null class's row."""
    path = existing(where)
    if (path / "models.safetensors").exists():
        warm_start(transformer, where, "transformer")
        return
    if path.is_file():
        heads = transformer.config.num_attention_heads
        given = lightningdit_from_original(load_original_checkpoint(path), num_heads=heads)
    else:
        subfolder = "transformer" if (path / "transformer").is_dir() or not path.exists() else None
        kind = LightningDiTTransformer2DModel.load_config(where, subfolder=subfolder).get("_class_name")
        if kind != "LightningDiTTransformer2DModel":
            raise ValueError(f"train.init_from: {where} holds {kind}, expected LightningDiTTransformer2DModel")
        given = LightningDiTTransformer2DModel.from_pretrained(where, subfolder=subfolder)
    if given.config.num_classes != transformer.config.num_classes:
        given.set_num_classes(transformer.config.num_classes)
    tensors, own = given.state_dict(), transformer.state_dict()
    new = [k for k in own if k not in tensors and (".norm_q." in k or ".norm_k." in k)]
    strange = sorted((tensors.keys() ^ own.keys()) - set(new))
    strange += [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    if strange:
        hint = "; set model.qk_norm true, as its weights ask" if ".norm_q." in strange[0] else ""
        raise ValueError(
            f"train.init_from: {where} holds another transformer than the configuration asks for: {strange[0]} and "
            f"{len(strange) - 1} more tensors do not fit{hint}"
        )
    transformer.load_state_dict(tensors, strict=False)
    if new:
        logger.warning(
            "%s has no norm on queries and keys: it is new and starts at 1, so the first steps are not the released "
            "model's (model.qk_norm false keeps its function, and may diverge in bf16)",
            where,
        )


def set_normalisation(vae, latents, data: LatentData) -> None:
    """What training does to latents, so that the pipeline undoes it before it decodes."""
    channels = vae.config.latent_channels
    mean, std = torch.zeros(channels), torch.ones(channels)
    if data.normalize:
        mean, std = latents.mean, latents.std
    set_latent_statistics(vae, mean, std)
    vae.register_to_config(scaling_factor=data.multiplier)


if __name__ == "__main__":
    run_script(main)

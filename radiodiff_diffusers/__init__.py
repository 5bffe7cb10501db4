"""Radio maps by diffusion, as plugins of Hugging Face diffusers.

Importing this package is cheap: its names are imported when they are first used. From then on, or from the moment
diffusers itself is imported, whichever comes first, diffusers' own loaders know our classes (see `registration`).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from .registration import register_with_diffusers

__version__ = "0.1.0"

# The folder of the model that ships with the package.
DEFAULT_MODEL = str(Path(__file__).parent / "default_model")
# A LoRA adapter for it: maps as a ray tracer makes them, `pipe.load_lora_weights(RAY_TRACED_ADAPTER)`.
RAY_TRACED_ADAPTER = str(Path(__file__).parent / "ray_traced_adapter")
# A network in place of the one that gives its maps, for the same:
# `RadioDiffPipeline.from_pretrained(DEFAULT_MODEL, mean_model=MeanMapModel.from_pretrained(RAY_TRACED_MODEL))`.
RAY_TRACED_MODEL = str(Path(__file__).parent / "ray_traced_model")

_HOMES = {
    "Scene": ".scene",
    "RadioMap": ".scene",
    "GainScale": ".scene",
    "register_channel": ".channels",
    "channel_names": ".channels",
    "scene_from_file": ".data.layout_files",
    "simulate": ".data.simulate",
    "open_dataset": ".data.hub",
    "RadioMapSeer": ".data.radiomapseer",
    "ICASSP2025": ".data.icassp2025",
    "RadioDiffPipeline": ".pipelines.pipeline_radiodiff",
    "RadioDiffPipelineOutput": ".pipelines.pipeline_radiodiff",
    "RadioDiffUNet2DModel": ".models.radiodiff_unet",
    "MeanMapModel": ".models.mean_map",
    "DualAutoencoderKL": ".models.dual_autoencoder",
    "ConstSDEScheduler": ".schedulers.scheduling_const_sde",
    "LightningDiTPipeline": ".pipelines.pipeline_lightningdit",
    "LightningDiTTransformer2DModel": ".models.lightning_dit",
    # diffusers' loader looks these two up on the library that a model_index.json names
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}

__all__ = [
    "DEFAULT_MODEL",
    "RAY_TRACED_ADAPTER",
    "RAY_TRACED_MODEL",
    *sorted(set(_HOMES) - {"ModelMixin", "SchedulerMixin"}),
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


register_with_diffusers()

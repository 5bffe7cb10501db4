"""Make diffusers' loaders know this package's classes, as soon as diffusers is there and not before.

diffusers resolves the class names of a saved pipeline in two places: a component's library must be a key of
`LOADABLE_CLASSES`, and the pipeline's own class must be an attribute of the `diffusers` module. Neither is a
documented extension point, so this file is the only one that touches them, and `tests/test_registration.py` fails
loudly when a newer diffusers changes them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

import wrapt

LIBRARY = "radiodiff_diffusers"
_METHODS = ["save_pretrained", "from_pretrained"]
_CLASSES = {
    f"{LIBRARY}.pipelines.pipeline_radiodiff": "RadioDiffPipeline",
    f"{LIBRARY}.pipelines.pipeline_lightningdit": "LightningDiTPipeline",
    f"{LIBRARY}.models.radiodiff_unet": "RadioDiffUNet2DModel",
    f"{LIBRARY}.models.mean_map": "MeanMapModel",
    f"{LIBRARY}.models.lightning_dit": "LightningDiTTransformer2DModel",
    f"{LIBRARY}.models.dual_autoencoder": "DualAutoencoderKL",
    f"{LIBRARY}.schedulers.scheduling_const_sde": "ConstSDEScheduler",
}


def register_with_diffusers() -> None:
    """Hook into the modules that load pipelines and models; at once where they are imported already."""
    for module in _CLASSES:
        wrapt.register_post_import_hook(_add_class, module)
    wrapt.register_post_import_hook(_add_library, "diffusers.pipelines.pipeline_loading_utils")
    # our classes derive from what these modules define, so they can be imported only once those are complete
    wrapt.register_post_import_hook(_import_classes, "diffusers.pipelines.pipeline_utils")
    wrapt.register_post_import_hook(_import_classes, "diffusers.models.auto_model")


def _add_library(loading_utils: ModuleType) -> None:
    # components are saved as ["radiodiff_diffusers", "ClassName"] and pass the Hub's component check
    loading_utils.LOADABLE_CLASSES.setdefault(LIBRARY, {"ModelMixin": _METHODS, "SchedulerMixin": _METHODS})


def _import_classes(_: ModuleType) -> None:
    for module in _CLASSES:
        if module not in sys.modules:  # one that is there, perhaps half imported, adds its class itself when complete
            import_module(module)


def _add_class(module: ModuleType) -> None:
    diffusers = import_module("diffusers")
    name = _CLASSES[module.__name__]
    cls = getattr(module, name)
    if getattr(diffusers, name, cls) is not cls:
        raise RuntimeError(f"diffusers has a {name} of its own: this version of {LIBRARY} does not go with it")
    setattr(diffusers, name, cls)

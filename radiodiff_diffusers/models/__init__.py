"""The networks. Names are imported when first used."""

from importlib import import_module

_HOME = {
    "RadioDiffUNet2DModel": "radiodiff_unet",
    "RadioDiffUNet2DOutput": "radiodiff_unet",
    "MeanMapModel": "mean_map",
    "ConditionFeatures": "condition_encoder",
    "SwinConditionEncoder": "condition_encoder",
    "make_condition_encoder": "condition_encoder",
    "RADIODIFF_UNET_PRESETS": "presets",
}

__all__ = list(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

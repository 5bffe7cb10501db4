"""Original checkpoints, in and out. Names are imported when first used."""

from importlib import import_module

_HOME = {
    "unet_from_original": "radiodiff",
    "unet_to_original": "radiodiff",
    "vae_from_original": "radiodiff",
    "pipeline_from_original": "radiodiff",
    "vavae_from_original": "vavae",
    "vavae_from_file": "vavae",
    "set_latent_statistics": "vavae",
    "lightningdit_from_original": "lightningdit",
    "lightningdit_from_file": "lightningdit",
}

__all__ = list(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

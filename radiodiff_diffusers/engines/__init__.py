"""Physics engines: plain functions from a `Scene` to a `RadioMap`, each imported when first used.

The modules carry other names than the functions on purpose: importing a submodule puts it into the package under its
own name, so a module called like a function would hide the function, or not, depending on who imported what first.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "dominant_path": "dominant_paths",
    "prepare": "dominant_paths",
    "free_space": "free_space_gain",
    "indoor": "indoor_walls",
    "ray_tracing": "sionna_rt",
    "reflected_rays": "reflections",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

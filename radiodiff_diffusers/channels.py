"""Condition channels: what a network sees of a scene, one (H, W) plane in [-1, 1] a name.

A model's configuration lists its channels in order, so pipeline, training data and model card agree by construction:

| name | -1 | +1 | between |
|---|---|---|---|
| `buildings`, `cars` | free | covered | |
| `transmitter` | elsewhere | its pixel | |
| `visibility` | shadow (and buildings) | line of sight from the transmitter | |
| `obstruction` | no building on the straight ray | infinitely much | 2 o / (o + 40 m) - 1 for o metres |
| `log_distance` | 0 m | 10 km and more | log10(1 + d) / 2 - 1 for d metres |
| `free_space` | -147 dB and less | -47.84 dB and more | free-space gain on RadioMapSeer's scale |
| `detour_loss` | 0 dB | 160 dB | loss beyond 1 m along the dominant path, / 80 - 1 |
| `detour_turn` | none | 80 dB and more | the part of it that is lost in turns, / 40 - 1 |
| `coarse_loss`, `coarse_turn` | | | the same two from a search that takes every other pixel in the open |
| `footprint` | free | covered | buildings on the map's own raster |
| `reflected_loss` | 0 dB | 160 dB | loss beyond 1 m of the engine `reflected_rays`, / 80 - 1 |
| `outlines_known` | walls are guessed from the mask | the scene has `polygons` | |
| `k2` | 0 | 1 | the scene's `k2` |
| `measurements` | -147 dB, or not measured | -47.84 dB | the scene's `measurements` |
| `measured` | not measured | measured | |

Ray channels see buildings and cars as obstacles. Your own: `@register_channel("name")` on a function `Scene -> (H, W)
array`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from .geometry import distance_metres
from .plugins import load_plugins
from .scene import STEP, GainScale, Scene

Channel = Callable[[Scene], np.ndarray]
_CHANNELS: dict[str, Channel] = {}

DETOUR_CHANNELS = {"detour_loss", "detour_turn", "coarse_loss", "coarse_turn"}  # these need a city prepared
CITIES_KEPT, LARGEST_KEPT = 8, 1024 * 1024  # cities, of which one has more than so many pixels
# What a scene remembers of its walls, the same for all transmitters.
WALL_NAMES = ("_outlines", "_footprint", "_city", "_walls")
OBSTRUCTION_HALF = 40.0  # metres of building at which the obstruction channel reads 0
LOG_DISTANCE_HALF = 2.0  # log10 of the distance, in metres, at which log_distance reads 0


def register_channel(name: str) -> Callable[[Channel], Channel]:
    """Make a function `Scene -> (H, W) float in [-1, 1]` a channel that model configurations can name."""

    def register(function: Channel) -> Channel:
        if name in _CHANNELS and _CHANNELS[name] is not function:
            raise ValueError(f"a channel named {name!r} is registered already: choose another name")
        _CHANNELS[name] = function
        return function

    return register


def channel_names() -> list[str]:
    """Every channel known, those of installed plugins included."""
    load_plugins()
    return sorted(_CHANNELS)


def check_channels(names: Iterable[str]) -> None:
    """Fail in one line where a model asks for a channel that nobody registered."""
    known = channel_names()
    for name in names:
        if name not in known:
            raise ValueError(
                f"unknown condition channel {name!r}; known: {', '.join(known)}. Another package may have "
                "to be installed or imported first (see register_channel)"
            )


def compute_channel(name: str, scene: Scene) -> np.ndarray:
    """One channel of a scene, checked. `Scene.plane` is the same with a memory."""
    check_channels([name])
    if scene._cut_from is not None:
        # A crop's channels are the whole scene's: its rays pass buildings that the crop does not hold.
        return scene.cut_from_whole(scene._cut_from[0].plane(name))
    plane = np.ascontiguousarray(_CHANNELS[name](scene), np.float32)
    if plane.shape != scene.shape:
        raise ValueError(f"channel {name!r} made a plane of shape {plane.shape} for a scene of shape {scene.shape}")
    low, high = float(plane.min()), float(plane.max())
    if not (low >= -1.0 and high <= 1.0):  # false for NaN too
        raise ValueError(f"channel {name!r} must lie in [-1, 1]; its values run from {low:g} to {high:g}")
    return plane


def condition_planes(scene: Scene, names: Iterable[str]) -> np.ndarray:
    """(C, H, W) float32: the named channels of a scene, in order; names may repeat."""
    names = list(names)
    planes = np.empty((len(names), *scene.shape), np.float32)
    write_planes(scene, names, planes)
    return planes


def write_planes(scene: Scene, names: Iterable[str], out: np.ndarray) -> None:
    """The same into `out`, (C, H, W) float32: what fills a batch writes each plane once, where it belongs."""
    for plane, name in zip(out, names, strict=True):
        kept = scene._planes.get(name)
        if kept is not None and kept.dtype == np.int16:
            np.multiply(kept, STEP, out=plane, dtype=np.float32)
        else:
            plane[...] = scene.plane(name)


def share_walls(
    scenes: Iterable[Scene], channels: Iterable[str], map: Callable, kept: OrderedDict[tuple, dict[str, Any]]
) -> None:
    """Work out the walls of a city once for all scenes in it, which differ in their transmitters, where these channels
    need them; `map` may be a pool's. `kept` remembers the last few cities from call to call."""
    wanted = DETOUR_CHANNELS & set(channels)
    if not wanted:
        return
    wholes = [scene if scene._cut_from is None else scene._cut_from[0] for scene in scenes]
    share_cities([whole for whole in wholes if wanted - set(whole._planes)], map, kept)


def share_cities(scenes: Iterable[Scene], map: Callable, kept: OrderedDict[tuple, dict[str, Any]]) -> None:
    """The same for scenes that are no crops, whatever their channels."""
    from .engines.dominant_paths import city_key, prepared

    cities: dict[tuple, list[Scene]] = {}
    for scene in scenes:
        cities.setdefault(city_key(scene), []).append(scene)
    list(map(prepared, [city[0] for key, city in cities.items() if key not in kept]))
    for key, city in cities.items():
        known = kept.get(key) or {name: city[0]._planes[name] for name in WALL_NAMES if name in city[0]._planes}
        for scene in city:
            scene._planes.update(known)
        kept[key] = known
        kept.move_to_end(key)
    large = [key for key, known in kept.items() if math.prod(known["_city"].shape) > LARGEST_KEPT]
    for key in [*large[:-1], *list(kept)[:-CITIES_KEPT]]:
        kept.pop(key, None)


# The channels ------------------------------------------------------------------------------------------------------


@register_channel("buildings")
def buildings(scene: Scene) -> np.ndarray:
    return _signed(scene.buildings)


@register_channel("cars")
def cars(scene: Scene) -> np.ndarray:
    return _signed(_needed(scene, "cars"))


@register_channel("transmitter")
def transmitter(scene: Scene) -> np.ndarray:
    scene.require_transmitter("channel 'transmitter'")
    plane = np.full(scene.shape, -1.0, np.float32)
    if scene.transmitter_pixel is not None:
        plane[scene.transmitter_pixel] = 1.0
    return plane


@register_channel("visibility")
def visibility(scene: Scene) -> np.ndarray:
    return _signed(_rays().obstructed_metres(scene) <= 1e-6)


@register_channel("obstruction")
def obstruction(scene: Scene) -> np.ndarray:
    metres = _rays().obstructed_metres(scene)
    return 2.0 * metres / (metres + OBSTRUCTION_HALF) - 1.0


@register_channel("log_distance")
def log_distance(scene: Scene) -> np.ndarray:
    return np.clip(np.log10(1.0 + distance_metres(scene)) / LOG_DISTANCE_HALF - 1.0, -1.0, 1.0)


@register_channel("free_space")
def free_space(scene: Scene) -> np.ndarray:
    from .engines import free_space as free_space_engine

    return GainScale.RADIOMAPSEER.to_unit(
        free_space_engine(scene.replace(buildings=np.zeros_like(scene.buildings), polygons=None)).gain_db
    )


@register_channel("detour_loss")
def detour_loss(scene: Scene) -> np.ndarray:
    return np.clip(_rays().detour(scene)[0] / 80.0 - 1.0, -1.0, 1.0)


@register_channel("detour_turn")
def detour_turn(scene: Scene) -> np.ndarray:
    return np.clip(_rays().detour(scene)[1] / 40.0 - 1.0, -1.0, 1.0)


@register_channel("coarse_loss")
def coarse_loss(scene: Scene) -> np.ndarray:
    return np.clip(_rays().coarse_detour(scene)[0] / 80.0 - 1.0, -1.0, 1.0)


@register_channel("coarse_turn")
def coarse_turn(scene: Scene) -> np.ndarray:
    return np.clip(_rays().coarse_detour(scene)[1] / 40.0 - 1.0, -1.0, 1.0)


@register_channel("footprint")
def footprint(scene: Scene) -> np.ndarray:
    return _signed(scene.footprint)


@register_channel("reflected_loss")
def reflected_loss(scene: Scene) -> np.ndarray:
    from .engines import reflected_rays
    from .engines.free_space_gain import loss_at_one_metre

    scene.require_transmitter("channel 'reflected_loss'")
    return np.clip((-reflected_rays(scene).gain_db - loss_at_one_metre(scene)) / 80.0 - 1.0, -1.0, 1.0)


@register_channel("outlines_known")
def outlines_known(scene: Scene) -> np.ndarray:
    return np.full(scene.shape, -1.0 if scene.polygons is None else 1.0, np.float32)


@register_channel("k2")
def k2(scene: Scene) -> np.ndarray:
    return np.clip(_needed(scene, "k2"), 0.0, 1.0) * 2.0 - 1.0


@register_channel("measurements")
def measurements(scene: Scene) -> np.ndarray:
    gain = _needed(scene, "measurements")
    return np.where(np.isnan(gain), -1.0, GainScale.RADIOMAPSEER.to_unit(np.nan_to_num(gain)))


@register_channel("measured")
def measured(scene: Scene) -> np.ndarray:
    return _signed(~np.isnan(_needed(scene, "measurements")))


def _rays():
    """Numba takes 60 MB and half a second: only who casts rays imports it."""
    from . import rays

    return rays


def _signed(mask: np.ndarray) -> np.ndarray:
    signs = mask.view(np.int8) * np.int8(2)  # bytes first: a quarter of the memory to go through
    signs -= np.int8(1)
    return signs.astype(np.float32)


def _needed(scene: Scene, name: str) -> np.ndarray:
    plane = getattr(scene, name)
    if plane is None:
        raise ValueError(f"this model needs the scene's {name!r}, which it lacks: make the scene with {name}=...")
    return plane


from . import channels_indoor  # noqa: E402, F401  (registers the indoor channels; it needs what stands above)

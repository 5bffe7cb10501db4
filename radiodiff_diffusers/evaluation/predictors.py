"""What a benchmark compares: predictors by name, each from a list of scenes to a list of radio maps.

| name | what it is |
|---|---|
| `free_space` | free-space loss, walls ignored |
| `log_distance` | gain = a - b log10(distance), both fitted to the scene's measurements |
| `nearest` | the nearest measurement |
| `idw` | the 12 nearest measurements, weighted by 1 / distance² |
| `rbf` | radial basis functions through the measurements (scipy, linear kernel) |
| `kriging` | ordinary kriging of the measurements; gives a standard deviation, too |
| `trend_kriging` | kriging of what the log-distance fit leaves |
| `dominant_path` | the dominant-path engine; `dominant_path:corner_loss=3,shadow_exponent=3` changes its constants |
| `reflected_rays` | the straight ray and those that walls reflect |
| `ray_tracing` | the Sionna RT engine; options likewise |
| `default@1,2,5` | the model in the package at 1, 2 and 5 steps (its own number where left out) |
| `default+ray_traced` | with the adapter in the package; any other by its folder or Hub id |
| `model:FOLDER@1,2,5` | any RadioDiff folder or Hub id; `model:FOLDER+ADAPTER@1` puts a LoRA adapter on it |
| `mean:ray_traced` | the model in the package with that for ray-traced maps; any other `MeanMapModel` by its folder |
| `unet:FOLDER` | a plain U-Net regression (`evaluation.plain_unet`) |

Your own: `@register_predictor("name")` on a function `Scene -> RadioMap`.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..channels import share_cities
from ..geometry import distance_metres
from ..plugins import load_plugins
from ..scene import GainScale, RadioMap, Scene

Predict = Callable[[list[Scene]], list[RadioMap]]
IDW_NEIGHBOURS = 12
MOST_KRIGED = 4000  # measurements; the system's cost grows with their cube


@dataclass(frozen=True)
class Predictor:
    """A row of the benchmark. `load` makes the predicting function when its turn comes: its memory is its own."""

    name: str
    load: Callable[[], Predict]
    needs_measurements: bool = False
    imports: str | None = None  # a module whose memory is not counted as the predictor's own


_FUNCTIONS: dict[str, tuple[Callable[..., RadioMap], bool]] = {}


def register_predictor(name: str, needs_measurements: bool = False) -> Callable:
    """Make a function `Scene -> RadioMap` a predictor that benchmarks can name."""

    def register(function: Callable[..., RadioMap]) -> Callable[..., RadioMap]:
        if name in _FUNCTIONS and _FUNCTIONS[name][0] is not function:
            raise ValueError(f"a predictor named {name!r} is registered already: choose another name")
        _FUNCTIONS[name] = function, needs_measurements
        return function

    return register


def predictor_names() -> list[str]:
    """Every name that `make_predictors` takes."""
    load_plugins()
    return [*_FUNCTIONS, "dominant_path", "default@STEPS", "model:FOLDER@STEPS", "mean:FOLDER", "unet:FOLDER"]


def make_predictors(
    spec: str, *, num_maps: int = 1, seed: int = 0, device: str | None = None, dtype: str = "float32"
) -> list[Predictor]:
    """The predictors that one word names: one, or one for each number of steps.

    Args:
        spec: a name, see the top of this module.
        num_maps: samples a scene where the predictor is a diffusion model; several give mean and spread.
        seed: of a diffusion model's noise.
        device, dtype: where and in which precision networks run; a GPU where there is one.
    """
    load_plugins()
    kind, _, rest = spec.partition(":")
    if spec == "default" or spec.startswith(("default@", "default+")):
        from .. import DEFAULT_MODEL

        kind, rest = "model", DEFAULT_MODEL + spec.removeprefix("default")
    if kind == "model":
        return _models(spec, rest, num_maps, seed, device, dtype)
    if kind == "mean":
        from .. import DEFAULT_MODEL, RAY_TRACED_MODEL

        if not rest:
            raise ValueError("mean: needs the folder of a MeanMapModel, as in mean:FOLDER, or ray_traced")
        where = RAY_TRACED_MODEL if rest == "ray_traced" else rest
        _check_folder(where, "config.json", "a MeanMapModel")
        load = lambda: _load_model(DEFAULT_MODEL, None, None, num_maps, seed, device, dtype, where)  # noqa: E731
        return [Predictor(f"mean:{_short(rest)}", load, imports="radiodiff_diffusers.pipelines")]
    if kind == "unet":
        if not rest:
            raise ValueError("unet: needs the folder of a plain U-Net, as in unet:FOLDER")
        _check_folder(rest, "config.json", "a plain U-Net")
        return [
            Predictor(
                f"unet:{_short(rest)}", lambda: _load_unet(rest, device, dtype), imports=f"{__package__}.plain_unet"
            )
        ]
    if kind == "dominant_path":
        constants = _constants(spec, rest)
        return [Predictor(spec, lambda: DominantPath(**constants))]
    if kind in _FUNCTIONS:
        function, needs_measurements = _FUNCTIONS[kind]
        constants = _constants(spec, rest)
        return [
            Predictor(
                spec, lambda: lambda scenes: [function(scene, **constants) for scene in scenes], needs_measurements
            )
        ]
    raise ValueError(f"unknown predictor {spec!r}: use one of {', '.join(predictor_names())}")


def _constants(spec: str, text: str) -> dict[str, float]:
    """`a=1,b=2` as a dictionary; what the engine does not know is refused here, before anything runs."""
    constants = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            constants[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"in {spec!r}: expected NAME=NUMBER, got {part!r}") from None
    if not constants:
        return constants
    kind = spec.partition(":")[0]
    if kind == "dominant_path":
        from ..engines.dominant_paths import PathLaws

        known = set(inspect.signature(PathLaws).parameters)
    else:
        known = {p.name for p in inspect.signature(_FUNCTIONS[kind][0]).parameters.values()} - {"scene"}
        if "options" in known:  # passed through to an engine, which checks them itself
            return constants
    unknown = sorted(set(constants) - known)
    if unknown:
        takes = f"its constants are {', '.join(sorted(known))}" if known else "it has none"
        raise ValueError(f"{kind} has no constant {unknown[0]!r}: {takes}")
    return constants


def _short(folder: str) -> str:
    return Path(folder).name if Path(folder).is_dir() else folder


# Physics -----------------------------------------------------------------------------------------------------------


@register_predictor("free_space")
def free_space(scene: Scene) -> RadioMap:
    from .. import engines

    return engines.free_space(scene)


@register_predictor("reflected_rays")
def reflected_rays(scene: Scene, max_depth: float = 5) -> RadioMap:
    from .. import engines

    return engines.reflected_rays(scene, max_depth=max_depth)


@register_predictor("ray_tracing")
def ray_tracing(scene: Scene, **options: float) -> RadioMap:
    from .. import engines

    return engines.ray_tracing(scene, **options)


class DominantPath:
    """The dominant-path engine, which prepares a city once for all transmitters that follow one another in it."""

    def __init__(self, **laws: float) -> None:
        self.laws = laws
        self._cities: OrderedDict[tuple, Any] = OrderedDict()

    def __call__(self, scenes: list[Scene]) -> list[RadioMap]:
        from ..engines import dominant_path

        share_cities([scene for scene in scenes if scene._cut_from is None], map, self._cities)
        # a crop is cut from its whole city's map by the engine itself
        cities = [scene._planes["_city"] if scene._cut_from is None else None for scene in scenes]
        return [dominant_path(scene, city=city, **self.laws) for scene, city in zip(scenes, cities, strict=True)]


# From measurements -------------------------------------------------------------------------------------------------


@register_predictor("log_distance", needs_measurements=True)
def log_distance(scene: Scene) -> RadioMap:
    rows, columns, values = _measured(scene)
    return _free_map(scene, _trend(scene, rows, columns, values)[~scene.footprint])


@register_predictor("nearest", needs_measurements=True)
def nearest(scene: Scene) -> RadioMap:
    from scipy.spatial import cKDTree

    rows, columns, values = _measured(scene)
    _, which = cKDTree(_points(rows, columns)).query(_free_points(scene))
    return _free_map(scene, values[which])


@register_predictor("idw", needs_measurements=True)
def idw(scene: Scene) -> RadioMap:
    from scipy.spatial import cKDTree

    rows, columns, values = _measured(scene)
    count = min(IDW_NEIGHBOURS, len(values))
    distance, which = cKDTree(_points(rows, columns)).query(_free_points(scene), k=count)
    distance, which = distance.reshape(-1, count), which.reshape(-1, count)  # scipy drops the axis for k=1
    weight = 1.0 / np.maximum(distance, 1e-6) ** 2
    return _free_map(scene, (weight * values[which]).sum(1) / weight.sum(1))


@register_predictor("rbf", needs_measurements=True)
def rbf(scene: Scene) -> RadioMap:
    from scipy.interpolate import RBFInterpolator

    rows, columns, values = _measured(scene)
    # the linear kernel does not overshoot at shadow borders as the smoother ones do
    through = RBFInterpolator(
        _points(rows, columns), values, kernel="linear", neighbors=64 if len(values) > 500 else None
    )
    return _free_map(scene, through(_free_points(scene)))


@register_predictor("kriging", needs_measurements=True)
def kriging(scene: Scene) -> RadioMap:
    rows, columns, values = _measured(scene)
    mean, std = ordinary_kriging(_points(rows, columns), values, _free_points(scene))
    return _free_map(scene, mean, std)


@register_predictor("trend_kriging", needs_measurements=True)
def trend_kriging(scene: Scene) -> RadioMap:
    rows, columns, values = _measured(scene)
    trend = _trend(scene, rows, columns, values)
    mean, std = ordinary_kriging(_points(rows, columns), values - trend[rows, columns], _free_points(scene))
    return _free_map(scene, mean + trend[~scene.footprint], std)


def ordinary_kriging(
    places: np.ndarray, values: np.ndarray, targets: np.ndarray, variogram: tuple[float, float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Best linear unbiased prediction of a field of unknown mean, and its standard deviation (Cressie 1993, 3.2).

    Args:
        places, targets: `(n, 2)` and `(m, 2)` coordinates.
        values: `(n,)` measurements.
        variogram: `(nugget, sill, range)` of nugget + sill (1 - exp(-h / range)); fitted to the values where left out.
    """
    from scipy.linalg import lu_factor, lu_solve
    from scipy.spatial.distance import cdist

    if len(values) > MOST_KRIGED:
        raise ValueError(f"kriging takes at most {MOST_KRIGED} measurements; got {len(values)}")
    nugget, sill, reach = variogram or fit_variogram(places, values)
    n = len(values)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = sill * np.exp(-cdist(places, places) / reach)
    system[range(n), range(n)] += max(nugget, 1e-9 * sill)
    system[n, n] = 0.0
    factors = lu_factor(system)
    weights_of_values = lu_solve(factors, np.append(values, 0.0))
    mean, std = np.empty(len(targets)), np.empty(len(targets))
    for start in range(0, len(targets), 8192):
        part = slice(start, start + 8192)
        right = np.ones((n + 1, len(targets[part])))
        right[:n] = sill * np.exp(-cdist(places, targets[part]) / reach)
        mean[part] = weights_of_values @ right
        std[part] = np.sqrt(np.maximum(sill + nugget - (right * lu_solve(factors, right)).sum(0), 0.0))
    return mean, std


def fit_variogram(places: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """`(nugget, sill, range)` of an exponential variogram, least squares on the binned half squared differences."""
    from scipy.optimize import curve_fit
    from scipy.spatial.distance import pdist

    if len(values) < 3 or np.ptp(values) == 0:
        return 0.0, max(float(np.var(values)), 1e-6), 50.0
    if len(values) > 1000:  # half a million pairs say enough
        chosen = np.linspace(0, len(values) - 1, 1000).astype(int)
        places, values = places[chosen], values[chosen]
    distance, half_square = pdist(places), 0.5 * pdist(values[:, None], "sqeuclidean")
    edges = np.linspace(0.0, distance.max() / 2, 16)
    bin_of = np.digitize(distance, edges) - 1
    counts = np.bincount(bin_of, minlength=16)[:15]
    used = counts > 0
    h = np.bincount(bin_of, distance, 16)[:15][used] / counts[used]
    gamma = np.bincount(bin_of, half_square, 16)[:15][used] / counts[used]
    variance = float(np.var(values))
    start, top = (0.1 * variance, 0.9 * variance, edges[-1] / 3), (2 * variance, 4 * variance, 4 * edges[-1])
    try:
        fitted, _ = curve_fit(
            lambda h, nugget, sill, reach: nugget + sill * (1.0 - np.exp(-h / reach)),
            h,
            gamma,
            p0=start,
            bounds=((0.0, 1e-6 * variance, 1e-3 * edges[-1]), top),
            sigma=1.0 / np.sqrt(counts[used]),
        )
    except RuntimeError:  # did not converge
        return start
    return tuple(float(v) for v in fitted)


def _measured(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and dB of the scene's measurements."""
    if scene.measurements is None or np.isnan(scene.measurements).all():
        raise ValueError("this predictor needs measurements: give the scene some, or --measurements in a benchmark")
    rows, columns = np.nonzero(~np.isnan(scene.measurements))
    return rows, columns, scene.measurements[rows, columns].astype(np.float64)


def _trend(scene: Scene, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(H, W) dB of the least-squares line over log10(distance); one measurement gets free space's slope."""
    decades = np.log10(np.maximum(distance_metres(scene), 1.0)).astype(np.float64)
    at = decades[rows, columns]
    slope = -20.0 if np.ptp(at) < 1e-9 else np.polyfit(at, values, 1)[0]
    return values.mean() + slope * (decades - at.mean())


def _points(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.stack([columns, rows], 1).astype(np.float64)


def _free_points(scene: Scene) -> np.ndarray:
    return _points(*np.nonzero(~scene.footprint))


def _free_map(
    scene: Scene, values: np.ndarray, std: np.ndarray | None = None, scale: GainScale = GainScale.RADIOMAPSEER
) -> RadioMap:
    """A map of values at the free pixels; buildings are at the scale's floor."""
    free = ~scene.footprint
    gain = np.full(scene.shape, scale.floor_db, np.float32)
    gain[free] = np.clip(values, *sorted((scale.db_at_0, scale.db_at_255)))
    spread = None
    if std is not None:
        spread = np.zeros(scene.shape, np.float32)
        spread[free] = std
    return RadioMap(gain, scale=scale, metres_per_pixel=scene.metres_per_pixel, std_db=spread)


# Networks ----------------------------------------------------------------------------------------------------------


def _models(spec: str, rest: str, num_maps: int, seed: int, device: str | None, dtype: str) -> list[Predictor]:
    """One predictor for each number of steps in `FOLDER+ADAPTER@1,2,5`."""
    where, at, steps = rest.rpartition("@")
    if not at:
        where, steps = rest, ""
    try:
        numbers = [int(n) for n in steps.split(",")] if at else [None]
    except ValueError:
        numbers = [0]
    if not where or any(n is not None and n < 1 for n in numbers):
        raise ValueError(f"{spec!r}: expected a folder or Hub id, and numbers of steps from 1 up: model:FOLDER@1,2,5")
    folder, adapter = where, None
    if not Path(where).exists():
        folder, _, adapter = where.partition("+")
    _check_folder(folder, "model_index.json", "a RadioDiff pipeline")
    if adapter:
        _check_folder(adapter, "", "a LoRA adapter")
    imports = f"{__package__.partition('.')[0]}.pipelines.pipeline_radiodiff"
    predictors = []
    for number in numbers:
        name = _short(folder) + (f"+{_short(adapter)}" if adapter else "")
        name += "" if number is None else f" @ {number} step{'s' * (number > 1)}"
        load = lambda number=number: _load_model(folder, adapter or None, number, num_maps, seed, device, dtype)  # noqa: E731
        predictors.append(Predictor(name, load, imports=imports))
    return predictors


def _check_folder(folder: str, file: str, what: str) -> None:
    """Refuse a wrong folder before anything runs; what may be a Hub id is left to the loader."""
    path = Path(folder)
    if path.is_dir():
        if not (path / file).exists():
            raise ValueError(f"{folder} is not the folder of {what}: it has no {file}")
    elif path.is_absolute() or folder.startswith((".", "~")) or folder.count("/") > 1:
        raise ValueError(f"{folder}: no such folder; expected that of {what}")


def _load_model(folder, adapter, steps, num_maps, seed, device, dtype, mean_model=None) -> Predict:
    import torch

    from .. import MeanMapModel, RadioDiffPipeline
    from ..lora import find_adapter

    precision = getattr(torch, dtype)
    pipe = RadioDiffPipeline.from_pretrained(folder, dtype=precision).to(_device(device))
    if mean_model:
        pipe.register_modules(mean_model=MeanMapModel.from_pretrained(mean_model, dtype=precision).to(pipe.device))
    if adapter:
        pipe.load_lora_weights(find_adapter(adapter))
        pipe.fuse_lora()
    pipe.set_progress_bar_config(disable=True)

    def predict(scenes: list[Scene]) -> list[RadioMap]:
        return pipe(scenes, num_inference_steps=steps, num_maps=num_maps, generator=seed, output_type="np").maps

    return predict


def _load_unet(folder: str, device: str | None, dtype: str) -> Predict:
    import torch

    from .plain_unet import PlainUNet

    model = PlainUNet.from_pretrained(folder, dtype=getattr(torch, dtype)).to(_device(device)).eval()
    return model.predict


def _device(device: str | None) -> str:
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")

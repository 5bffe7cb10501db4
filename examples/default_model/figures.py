"""The pictures of the shipped models and the adapter: docs/images/prediction.png, uncertainty.png and, where the
ray-traced maps of Florence are at hand (examples/lora/README.md), ray_traced.png.
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from radiodiff_diffusers import (
    DEFAULT_MODEL,
    RAY_TRACED_ADAPTER,
    RAY_TRACED_MODEL,
    MeanMapModel,
    RadioDiffPipeline,
    RadioMapSeer,
    Scene,
)
from radiodiff_diffusers.data.footprints import footprint_tiles
from radiodiff_diffusers.engines import dominant_path, reflected_rays
from radiodiff_diffusers.geometry import rasterize

IMAGES, RAY_TRACED = Path("docs/images"), Path("data/ray_traced_florence")
CITY, TRANSMITTER = "examples/city.png", (128, 120)


def panel(axis, picture, title, label=None, **options):
    shown = axis.imshow(picture, **options)
    axis.set_title(title, fontsize=11)
    axis.set_xticks([]), axis.set_yticks([])
    if label:
        plt.colorbar(shown, ax=axis, fraction=0.046, pad=0.03, label=label)
    return axis


def prediction(pipe) -> None:
    scene = Scene(CITY, transmitter=TRANSMITTER)
    truth, predicted = dominant_path(scene), pipe(scene, generator=0).maps[0]
    gain = {"vmin": -130, "vmax": -50, "cmap": "viridis"}
    walls = np.where(scene.buildings, np.nan, 1.0)

    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    panel(axes[0], ~scene.buildings, "buildings and transmitter", cmap="gray").plot(*TRANSMITTER, "r^", markersize=9)
    panel(axes[1], predicted.gain_db * walls, "predicted by the default model", "gain (dB)", **gain)
    panel(axes[2], truth.gain_db * walls, "dominant-path engine", "gain (dB)", **gain)
    error = (predicted.gain_db - truth.gain_db) * walls
    rmse = np.sqrt(np.nanmean(error**2))
    panel(axes[3], error, f"difference, RMSE {rmse:.1f} dB", "dB", vmin=-10, vmax=10, cmap="RdBu_r")
    figure.savefig(IMAGES / "prediction.png", dpi=90)


def uncertainty(pipe) -> None:
    """A tile of Florence seen as a mask, and once more with three buildings missing, against the engine's map of the
    true outlines."""
    city = max(
        footprint_tiles("florence", stride=256), key=lambda tile: (tile.buildings.mean() < 0.5, len(tile.polygons))
    )
    free = np.argwhere(~city.buildings)
    row, column = free[np.argmin(((free - 128) ** 2).sum(1))]
    city = city.replace(transmitter=(int(column), int(row)))
    truth = dominant_path(city)
    order = np.argsort([np.hypot(*(rings[0].mean(0) - 128)) for rings in city.polygons])
    fewer = tuple(rings for k, rings in enumerate(city.polygons) if k not in order[[8, 12, 16]])
    seen = {
        "as a mask": city.replace(polygons=None),
        "with three buildings missing": city.replace(polygons=None, buildings=rasterize(fewer, city.shape)),
    }
    walls = np.where(city.buildings, np.nan, 1.0)
    figure, axes = plt.subplots(2, 4, figsize=(15, 7), layout="constrained")
    for row_of_axes, (name, scene) in zip(axes, seen.items(), strict=True):
        several = pipe(scene, num_maps=8, generator=0).maps[0]
        error = np.abs(several.gain_db - truth.gain_db) * walls
        panel(row_of_axes[0], ~scene.buildings, f"seen {name}", cmap="gray").plot(
            *city.transmitter, "r^", markersize=9
        )
        gain = {"vmin": -130, "vmax": -50, "cmap": "viridis"}
        panel(row_of_axes[1], several.gain_db * walls, "eight maps: their mean", "gain (dB)", **gain)
        panel(row_of_axes[2], several.std_db * walls, "their standard deviation", "dB", vmin=0, vmax=6, cmap="magma")
        panel(row_of_axes[3], error, "error of the mean", "dB", vmin=0, vmax=6, cmap="magma")
    figure.savefig(IMAGES / "uncertainty.png", dpi=80)


def ray_traced(pipe) -> None:
    """The ray-traced tile of Florence that rays fill most; two engines, the ray-traced model, the adapter."""
    data = RadioMapSeer(RAY_TRACED, "all", simulation="RT", layout="polygon")
    scene, truth = max(data, key=lambda pair: pair[1].gray.mean())
    maps = {"ray tracing": truth, "dominant path": dominant_path(scene), "reflected rays": reflected_rays(scene)}
    other = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL, mean_model=MeanMapModel.from_pretrained(RAY_TRACED_MODEL))
    other.set_progress_bar_config(disable=True)
    maps["ray-traced model"] = other(scene).maps[0]
    pipe.load_lora_weights(RAY_TRACED_ADAPTER)
    maps["ray-traced adapter"] = pipe(scene).maps[0]
    pipe.unload_lora_weights()
    walls = np.where(scene.buildings, np.nan, 1.0)
    figure, axes = plt.subplots(1, 5, figsize=(18, 4), layout="constrained")
    for axis, (name, radio_map) in zip(axes, maps.items(), strict=True):
        nmse = np.square(radio_map.gray - truth.gray).sum() / np.square(truth.gray).sum()
        title = name if radio_map is truth else f"{name}, NMSE {nmse:.3f}"
        shown = axis.imshow(radio_map.gain_db * walls, vmin=-147, vmax=-60, cmap="viridis")
        axis.set_title(title, fontsize=11), axis.set_xticks([]), axis.set_yticks([])
    figure.colorbar(shown, ax=axes, fraction=0.01, pad=0.01, label="gain (dB)")
    figure.savefig(IMAGES / "ray_traced.png", dpi=75)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL)
    pipe.set_progress_bar_config(disable=True)
    prediction(pipe)
    uncertainty(pipe)
    if RAY_TRACED.is_dir():
        ray_traced(pipe)


if __name__ == "__main__":
    main()

"""The pictures of the shipped model: docs/images/prediction.png and uncertainty.png."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from radiodiff_diffusers import DEFAULT_MODEL, RadioDiffPipeline, Scene
from radiodiff_diffusers.data.footprints import footprint_tiles
from radiodiff_diffusers.engines import dominant_path
from radiodiff_diffusers.geometry import rasterize

IMAGES = Path("docs/images")
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
        panel(row_of_axes[1], several.gain_db * walls, "mean of eight maps", "gain (dB)", **gain)
        panel(row_of_axes[2], several.std_db * walls, "their standard deviation", "dB", vmin=0, vmax=6, cmap="magma")
        panel(row_of_axes[3], error, "error of the mean", "dB", vmin=0, vmax=6, cmap="magma")
    figure.savefig(IMAGES / "uncertainty.png", dpi=80)


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL)
    pipe.set_progress_bar_config(disable=True)
    prediction(pipe)
    uncertainty(pipe)


if __name__ == "__main__":
    main()

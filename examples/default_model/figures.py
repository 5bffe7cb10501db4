"""The picture of the shipped model: docs/images/prediction.png."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from radiodiff_diffusers import DEFAULT_MODEL, RadioDiffPipeline, Scene
from radiodiff_diffusers.engines import dominant_path

IMAGES = Path("docs/images")
CITY, TRANSMITTER = "examples/city.png", (128, 120)


def panel(axis, picture, title, label=None, **options):
    shown = axis.imshow(picture, **options)
    axis.set_title(title, fontsize=11)
    axis.set_xticks([]), axis.set_yticks([])
    if label:
        plt.colorbar(shown, ax=axis, fraction=0.046, pad=0.03, label=label)
    return axis


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL)
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


if __name__ == "__main__":
    main()

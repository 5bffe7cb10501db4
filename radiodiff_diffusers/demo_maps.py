"""What the demo page computes and draws, as plain functions: scenes from what users hand in, maps, pictures, files.

Nothing here knows of the page; `app` puts these functions behind buttons.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .reports import style
from .scene import GainScale, RadioMap, Scene, read_image

logger = logging.getLogger(__name__)
MAX_FILE_BYTES = 10_000_000
MAX_SIDE = 1024
MARGIN = 24  # pixels of open ground around a file's buildings
MAX_SAMPLES, MAX_STEPS = 8, 50
ENGINES = ("dominant_path", "free_space")


# Scenes ------------------------------------------------------------------------------------------------------------


def scene_from_upload(path: str | Path, metres_per_pixel: float = 1.0) -> Scene:
    """Buildings from a picture or a GeoJSON file; too large ones are refused with a message."""
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"the file has {size / 1e6:.0f} MB; at most {MAX_FILE_BYTES // 1_000_000} MB are taken here")
    try:
        if path.suffix.lower() in {".geojson", ".json"}:
            from .data.layout_files import scene_from_file

            # The file's own window ends where its buildings do; a transmitter needs ground to stand on.
            tight = scene_from_file(path, metres_per_pixel=metres_per_pixel)
            scene = Scene(np.pad(tight.buildings, MARGIN), metres_per_pixel=metres_per_pixel)
        else:
            scene = Scene(_bright_buildings(read_image(path)), metres_per_pixel=metres_per_pixel)
    except ValueError as error:  # users know the file's name, not the folder that the page keeps it in
        raise ValueError(str(error).replace(str(path), path.name)) from None
    return _checked(scene)


def scene_from_drawing(plane: np.ndarray, metres_per_pixel: float = 1.0) -> Scene:
    """Buildings from a drawing, (height, width) or with colours: whatever is darker than half is a building."""
    plane = np.asarray(plane, np.float32)
    if plane.ndim == 3:
        opaque = plane[..., 3:4] / 255 if plane.shape[2] == 4 else np.float32(1)
        plane = (plane[..., :3] * opaque + 255 * (1 - opaque)).mean(2)
    return _checked(Scene(plane < 127.5, metres_per_pixel=metres_per_pixel))


def scene_from_seed(seed: int, size: int = 256) -> Scene:
    """A made-up city."""
    from .data.cities import generate_city

    return _checked(generate_city(int(seed), int(size)))


def _bright_buildings(plane: np.ndarray) -> np.ndarray:
    return plane > (plane.max() / 2 if plane.max() > 0 else 0.5)


def _checked(scene: Scene) -> Scene:
    height, width = scene.shape
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"the map is {width} x {height} pixels; at most {MAX_SIDE} x {MAX_SIDE} are taken here")
    return scene


# Predictions -------------------------------------------------------------------------------------------------------


class Predictor:
    """The model, loaded once for all users; without one, a physics engine answers and the page says so."""

    def __init__(self, model: str | None):
        self.model = model
        self._pipe: Any = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        from . import DEFAULT_MODEL

        if self.model is None:
            return "dominant-path engine (no model is installed)"
        return "the model in the package" if self.model == DEFAULT_MODEL else f"model {Path(self.model).name}"

    def check(self) -> None:
        """A wrong folder is told before the page opens, not to its first visitor."""
        from .hub_names import could_be_on_the_hub

        if self.model is None or (Path(self.model) / "model_index.json").is_file():
            return
        if Path(self.model).exists():
            raise ValueError(f"{self.model} is no pipeline: it has no model_index.json")
        if not could_be_on_the_hub(self.model):
            raise ValueError(f"{self.model}: no such folder; give a pipeline's folder or a Hub id such as owner/name")

    def warm_up(self) -> None:
        """Load the model and compile the ray kernels while the first visitor still looks at the city."""
        if self.model is not None:
            scene = Scene(np.zeros((64, 64), bool), transmitter=(32, 32))
            threading.Thread(target=self._try, args=(scene,), daemon=True).start()

    def _try(self, scene: Scene) -> None:
        try:
            self(scene, 1, 1, 0)
        except Exception as error:  # whatever is wrong is told to the visitor who asks for a map
            logger.warning("the model could not be warmed up: %s", error)

    def __call__(self, scene: Scene, steps: int | None, samples: int, seed: int) -> tuple[RadioMap, list[np.ndarray]]:
        """The map (mean and spread of the samples) and the single samples in dB."""
        if self.model is None:
            truth = engine_map("dominant_path", scene)
            return truth, [truth.gain_db]
        with self._lock:  # one prediction at a time: the queue keeps the others waiting
            if self._pipe is None:
                import torch

                from . import RadioDiffPipeline

                pipe = RadioDiffPipeline.from_pretrained(self.model)
                pipe.to("cuda" if torch.cuda.is_available() else "cpu")
                pipe.set_progress_bar_config(disable=True)
                self._pipe = pipe
            out = self._pipe(
                scene,
                num_inference_steps=None if steps is None else int(np.clip(steps, 1, MAX_STEPS)),
                num_maps=int(np.clip(samples, 1, MAX_SAMPLES)),
                generator=int(seed),
            )
        singles = list(out.samples[0]) if out.samples else [out.maps[0].gain_db]
        return out.maps[0], singles


def engine_map(name: str, scene: Scene) -> RadioMap:
    from . import engines

    if name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}: use one of {', '.join(ENGINES)}")
    return getattr(engines, name)(scene)


def coverage(radio_map: RadioMap, scene: Scene, threshold_db: float) -> float:
    """The share of the open ground that hears at least `threshold_db`."""
    free = ~scene.buildings
    return float((radio_map.gain_db[free] >= threshold_db).mean()) if free.any() else float("nan")


@dataclass
class Profile:
    """Gain along a line from the transmitter: distance in metres, and where the line is inside buildings."""

    metres: np.ndarray
    gain_db: np.ndarray
    inside: np.ndarray
    end: tuple[float, float]


def profile(radio_map: RadioMap, scene: Scene, degrees: float) -> Profile:
    """Along a ray from the transmitter; 0 degrees points right, 90 down, as in the picture."""
    x, y = scene.require_transmitter("a profile")
    dx, dy = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    height, width = scene.shape
    reach = min(
        ((width - 1 - x) / dx if dx > 1e-9 else -x / dx if dx < -1e-9 else np.inf),
        ((height - 1 - y) / dy if dy > 1e-9 else -y / dy if dy < -1e-9 else np.inf),
    )
    along = np.arange(0.0, max(reach, 0.0) + 1e-6, 0.5)
    columns = np.clip(np.rint(x + along * dx).astype(int), 0, width - 1)
    rows = np.clip(np.rint(y + along * dy).astype(int), 0, height - 1)
    end = (float(x + along[-1] * dx), float(y + along[-1] * dy))
    return Profile(
        along * scene.metres_per_pixel, radio_map.gain_db[rows, columns], scene.buildings[rows, columns], end
    )


# Pictures ----------------------------------------------------------------------------------------------------------


def draw_scene(scene: Scene, zoom: int) -> np.ndarray:
    """The picture that users click into, `zoom` times as large, without margins: a click is a place."""
    ground = np.full((*scene.shape, 3), 245, np.uint8)
    ground[scene.buildings] = (90, 97, 107)
    if scene.cars is not None:
        ground[scene.cars] = (213, 94, 0)
    picture = ground.repeat(zoom, 0).repeat(zoom, 1)
    if scene.transmitter is not None:
        x, y = ((v + 0.5) * zoom for v in scene.transmitter)
        rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
        distance = np.hypot(columns + 0.5 - x, rows + 0.5 - y)
        picture[distance < 7] = (255, 255, 255)
        picture[distance < 5] = (213, 94, 0)
    return picture


def zoom_for(scene: Scene) -> int:
    """So that small maps are large enough to be hit."""
    return max(1, 512 // max(scene.shape))


def draw_map(scene: Scene, radio_map: RadioMap, title: str, line_to: tuple[float, float] | None = None) -> np.ndarray:
    """The radio map in dB with its colour bar and scale bar."""
    with style.drawing(size=(6.2, 5.2)) as (figure, grid):
        axes = grid[0, 0]
        style.gain_map(
            axes, radio_map.gain_db, radio_map.scale, title, scene.buildings, scene.transmitter, scene.metres_per_pixel
        )
        if line_to is not None:
            (x, y), (a, b) = scene.transmitter, line_to
            axes.plot([x, a], [y, b], color="white", linewidth=1, linestyle="--")
        return as_pixels(figure)


def draw_truth(scene: Scene, radio_map: RadioMap, truth: RadioMap, engine: str) -> np.ndarray:
    """The engine's map and the error, side by side."""
    error = np.where(scene.buildings, 0.0, radio_map.gain_db - truth.gain_db)
    free = error[~scene.buildings]
    root = float(np.sqrt(np.square(free).mean())) if free.size else float("nan")
    with style.drawing(1, 2, (11.2, 5.0)) as (figure, grid):
        name = engine.replace("_", " ")
        style.gain_map(
            grid[0, 0],
            truth.gain_db,
            truth.scale,
            f"{name} engine",
            scene.buildings,
            scene.transmitter,
            scene.metres_per_pixel,
        )
        limit = style.error_limit(error)
        style.error_map(
            grid[0, 1], error, limit, f"prediction minus engine, RMSE {root:.1f} dB", scene.metres_per_pixel
        )
        return as_pixels(figure)


def draw_spread(scene: Scene, radio_map: RadioMap, samples: list[np.ndarray]) -> np.ndarray | None:
    """Up to three samples and their standard deviation; None for a single one."""
    if radio_map.std_db is None or len(samples) < 2:
        return None
    shown = samples[:3]
    with style.drawing(2, 2, (8.6, 7.6)) as (figure, grid):
        panels = list(grid.flat)
        for i, (axes, sample) in enumerate(zip(panels, shown, strict=False)):
            title = f"sample {i + 1} of {len(samples)}"
            style.gain_map(
                axes, sample, radio_map.scale, title, scene.buildings, scene.transmitter, scene.metres_per_pixel
            )
        axes = panels[len(shown)]
        for empty in panels[len(shown) + 1 :]:
            empty.set_axis_off()
        spread = np.ma.masked_where(scene.buildings, radio_map.std_db)
        top = max(float(np.quantile(radio_map.std_db, 0.99)), 0.5)
        image = axes.imshow(spread, cmap=style.SPREAD_COLOURS, vmin=0, vmax=top)
        axes.set_facecolor("#B8B8B8")
        style.finish_map(axes, "spread", scene.shape, scene.transmitter, scene.metres_per_pixel)
        figure.colorbar(image, ax=axes, label="standard deviation [dB]", fraction=0.046, pad=0.02)
        return as_pixels(figure)


def draw_profile(predicted: Profile, true: Profile | None, engine: str, threshold_db: float) -> np.ndarray:
    with style.drawing(size=(6.6, 4.0)) as (figure, grid):
        axes = grid[0, 0]
        inside = {"color": "#D5D8DC", "step": "mid", "label": "inside a building"}
        where = axes.get_xaxis_transform()
        axes.fill_between(predicted.metres, 0, 1, where=predicted.inside, transform=where, **inside)
        gain = np.where(predicted.inside, np.nan, predicted.gain_db)
        axes.plot(predicted.metres, gain, color=style.BLUE, label="prediction")
        if true is not None:
            gain = np.where(true.inside, np.nan, true.gain_db)
            axes.plot(true.metres, gain, color=style.ORANGE, label=f"{engine.replace('_', ' ')} engine")
        axes.axhline(threshold_db, color=style.GRAY, linestyle=":", label=f"threshold {threshold_db:g} dB")
        style.label(axes, "Gain along the dashed line", "distance from the transmitter [m]", "gain [dB]")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
        return as_pixels(figure)


def as_pixels(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


# Downloads ---------------------------------------------------------------------------------------------------------


def save_downloads(radio_map: RadioMap, folder: str | Path, name: str = "radio_map") -> list[str]:
    """PNG (8-bit gray on the map's scale), NPZ (exact, with spread), GeoTIFF (float32 dB, metres)."""
    folder = Path(folder)
    paths = [radio_map.save(folder / f"{name}.png"), radio_map.save(folder / f"{name}.npz")]
    return [str(path) for path in (*paths, save_geotiff(radio_map, folder / f"{name}.tif"))]


def save_geotiff(radio_map: RadioMap, path: str | Path, corner: tuple[float, float] | None = None) -> Path:
    """Float32 dB with GeoTIFF's tags: metres, y up, `corner` the (x, y) of the map's upper left corner.

    A made-up city has no place on earth, so the coordinate system is a local one; where no corner is given, the lower
    left one is (0, 0).
    """
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metres = float(radio_map.metres_per_pixel)
    x, y = corner or (0.0, radio_map.shape[0] * metres)
    tags = ImageFileDirectory_v2()
    for number, kind, values in (
        (33550, 12, (metres, metres, 0.0)),  # ModelPixelScale
        (33922, 12, (0.0, 0.0, 0.0, x, y, 0.0)),  # ModelTiepoint: pixel corner (0, 0) lies at (x, y)
        # GeoKeys: projected, pixel is area, user-defined coordinate system, unit metre
        (34735, 3, (1, 1, 0, 4, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32767, 3076, 0, 1, 9001)),
    ):
        tags.tagtype[number] = kind
        tags[number] = values
    Image.fromarray(radio_map.gain_db).save(path, tiffinfo=tags)
    return path


def threshold_range(scale: GainScale = GainScale.RADIOMAPSEER) -> tuple[float, float]:
    low, high = style.gain_limits(scale)
    return float(low), float(np.floor(high))

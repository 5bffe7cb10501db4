"""The demo: a page to click a transmitter into a city and see its radio map. Needs the extra `demo` (Gradio).

`radiodiff demo` starts it on this machine. As a Space on the Hub, the Space's `app.py` is

    from radiodiff_diffusers.app import build_app, launch_options

    build_app().queue(max_size=40).launch(**launch_options(host=None))
"""

# No postponed annotations here: Gradio reads `gr.SelectData` from a handler while `gr` is a local name.
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from . import demo_maps
from .scene import Scene

QUEUE_LENGTH = 40
KEPT_RESULTS = 100
TITLE = "Radio maps by diffusion"
INTRODUCTION = (
    "Choose a city, then **click where the transmitter stands**. Gains are in dB; buildings are gray. "
    "Predictions are made by: {name}."
)


def build_app(model: str | None = None, folder: str | Path | None = None) -> Any:
    """The page as a `gradio.Blocks`.

    Args:
        model (`str`, *optional*): a pipeline's folder or Hub id; the package's model where left out.
        folder (path, *optional*): where downloads are put; a temporary folder of its own where left out.
    """
    _keep_to_this_machine()
    import gradio as gr

    from . import DEFAULT_MODEL

    if model is None and (Path(DEFAULT_MODEL) / "model_index.json").is_file():
        model = DEFAULT_MODEL
    predictor = demo_maps.Predictor(model)
    predictor.check()
    predictor.warm_up()
    files = Path(folder) if folder else Path(tempfile.mkdtemp(prefix="radiodiff_demo_"))
    low, high = demo_maps.threshold_range()

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        scene = gr.State(None)
        gr.Markdown(f"# {TITLE}\n{INTRODUCTION.format(name=predictor.name)}")
        with gr.Row():
            with gr.Column(scale=5):
                with gr.Tab("City by seed"):
                    city_seed = gr.Number(7, label="City seed", precision=0, minimum=0, elem_id="city_seed")
                    make = gr.Button("New city", elem_id="new_city")
                with gr.Tab("File"):
                    upload = gr.File(
                        label=f"PNG (bright buildings) or GeoJSON, at most {demo_maps.MAX_FILE_BYTES // 1_000_000} MB",
                        elem_id="upload",
                    )
                    metres = gr.Number(1.0, label="Metres a pixel", minimum=0.01)
                with gr.Tab("Draw"):
                    canvas = gr.ImageEditor(
                        np.full((256, 256, 3), 255, np.uint8),
                        type="numpy",
                        image_mode="RGB",
                        brush=gr.Brush(default_size=16, colors=["#000000"], color_mode="fixed"),
                        sources=(),
                        transforms=(),
                        layers=False,
                        canvas_size=(256, 256),
                        fixed_canvas=True,
                        label="Draw buildings in black",
                    )
                    use_drawing = gr.Button("Use the drawing")
                # No labels or buttons on pictures: they would lie on the map, and swallow clicks.
                bare = {"interactive": False, "format": "png", "show_label": False, "buttons": []}
                city = gr.Image(label="City", type="numpy", elem_id="city", **bare)
                with gr.Row():
                    steps = gr.Slider(
                        0, demo_maps.MAX_STEPS, 0, step=1, label="Steps", info="0: the model's own number"
                    )
                    samples = gr.Slider(1, demo_maps.MAX_SAMPLES, 1, step=1, label="Samples", info="for their spread")
                with gr.Row():
                    threshold = gr.Slider(low, high, -110, step=1, label="Threshold [dB]", info="of the coverage")
                    angle = gr.Slider(0, 359, 0, step=1, label="Direction [°]", info="of the profile; 90 is down")
                with gr.Row():
                    engines = ["none", *demo_maps.ENGINES]
                    truth = gr.Radio(engines, value="none", label="Engine to compare with", scale=3)
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, scale=1, min_width=90)
                again = gr.Button("Predict", variant="primary", elem_id="predict")
            with gr.Column(scale=6):
                result = gr.Image(label="Radio map", elem_id="map", **bare)
                facts = gr.Markdown(elem_id="facts")
                line = gr.Image(label="Profile", elem_id="profile", **bare)
                compared = gr.Image(label="Engine and error", visible=False, elem_id="compared", **bare)
                spread = gr.Image(label="Samples and spread", visible=False, elem_id="spread", **bare)
                downloads = gr.Files(label="Download: PNG, NPZ, GeoTIFF", elem_id="downloads")

        settings = [steps, samples, seed, threshold, angle, truth]
        outputs = [result, facts, line, compared, spread, downloads]

        def show(new: Scene) -> tuple:
            """A new city: its picture, and nothing else yet."""
            hidden = gr.update(value=None, visible=False)
            hint = "Click into the city to place the transmitter."
            return new, demo_maps.draw_scene(new, demo_maps.zoom_for(new)), None, hint, None, hidden, hidden, None

        def from_seed(number: float | None) -> tuple:
            return show(_told(demo_maps.scene_from_seed, int(number or 0)))

        def from_file(path: str | None, scale: float) -> tuple:
            if path is None:
                return tuple(gr.skip() for _ in range(2 + len(outputs)))
            return show(_told(demo_maps.scene_from_upload, path, scale))

        def from_drawing(drawn: dict | None) -> tuple:
            if not drawn or drawn.get("composite") is None:
                raise gr.Error("Nothing is drawn yet.", print_exception=False)
            return show(_told(demo_maps.scene_from_drawing, drawn["composite"]))

        def place(old: Scene | None, event: gr.SelectData) -> tuple:
            """The transmitter where one clicked; a click into a wall says so."""
            if old is None:
                raise gr.Error("Choose a city first.", print_exception=False)
            zoom = demo_maps.zoom_for(old)
            spot = tuple(int(v) // zoom for v in event.index)
            new = _told(old.replace, transmitter=spot)
            return new, demo_maps.draw_scene(new, zoom)

        def predict(here, steps_, samples_, seed_, threshold_, angle_, truth_) -> tuple:
            """Map, coverage, profile, and on demand the engine's truth and the spread of several samples."""
            if here is None or here.transmitter is None:
                raise gr.Error(
                    "Click into the city first: the transmitter's place is not known.", print_exception=False
                )
            made, singles = _told(predictor, here, int(steps_) or None, int(samples_), int(seed_ or 0))
            made.metres_per_pixel = here.metres_per_pixel
            ray = demo_maps.profile(made, here, angle_)
            true = _told(demo_maps.engine_map, truth_, here) if truth_ != "none" else None
            true_ray = demo_maps.profile(true, here, angle_) if true is not None else None
            beside = demo_maps.draw_truth(here, made, true, truth_) if true is not None else None
            several = demo_maps.draw_spread(here, made, singles)
            share = demo_maps.coverage(made, here, threshold_)
            x, y = here.transmitter
            text = (
                f"Transmitter at ({x:g}, {y:g}). **{share:.1%}** of the open ground hears at least {threshold_:g} dB. "
                f"Gain {made.gain_db[~here.buildings].min():.1f} to {made.gain_db.max():.1f} dB."
            )
            own = _folder_for_downloads(files)
            return (
                demo_maps.draw_map(here, made, "Radio map", ray.end),
                text,
                demo_maps.draw_profile(ray, true_ray, truth_, threshold_),
                gr.update(value=beside, visible=beside is not None),
                gr.update(value=several, visible=several is not None),
                demo_maps.save_downloads(made, own),
            )

        shown = [scene, city, *outputs]
        once = {"concurrency_limit": 1, "concurrency_id": "prediction"}
        make.click(from_seed, city_seed, shown, api_name="city")
        upload.upload(from_file, [upload, metres], shown, api_name="file")
        use_drawing.click(from_drawing, canvas, shown, api_name="drawing")
        clicked = city.select(place, scene, [scene, city], api_name="place")
        clicked.success(predict, [scene, *settings], outputs, api_name="predict_clicked", **once)
        again.click(predict, [scene, *settings], outputs, api_name="predict", **once)
        page.load(from_seed, city_seed, shown, api_name="start")
    return page


def launch_options(host: str | None = "127.0.0.1", port: int | None = None) -> dict[str, Any]:
    """What `launch` is given: this machine only, uploads bounded, errors shown, fonts that need no network."""
    import gradio as gr

    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {
        "server_name": host,
        "server_port": port,
        "max_file_size": demo_maps.MAX_FILE_BYTES,
        "show_error": True,
        "share": False,
        "theme": theme,
        "footer_links": [],
        "ssr_mode": False,
    }


@contextmanager
def serving(model: str | None = None, host: str = "127.0.0.1", port: int | None = None) -> Iterator[tuple[Any, str]]:
    """The page, running, and its address. All it writes is in one temporary folder, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="radiodiff_demo_") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_app(model, folder)
        try:
            page.queue(max_size=QUEUE_LENGTH)
            _, address, _ = page.launch(**launch_options(host, port), prevent_thread_lock=True, quiet=True)
            yield page, address
        finally:
            page.close()
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def _folder_for_downloads(files: Path) -> str:
    """A folder of its own for each result; the oldest make room, so that a page that runs for weeks fills no disk."""
    kept = sorted(files.glob("result_*"), key=lambda folder: folder.stat().st_mtime)
    for old in kept[: max(len(kept) - KEPT_RESULTS + 1, 0)]:
        shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix="result_", dir=files)


def _told(function: Any, *args: Any, **kwargs: Any) -> Any:
    """A wrong input is shown on the page, in the words of the library."""
    import gradio as gr

    try:
        return function(*args, **kwargs)
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from None


def _keep_to_this_machine() -> None:
    """Gradio asks its maker's servers for news and counts its users unless told not to."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

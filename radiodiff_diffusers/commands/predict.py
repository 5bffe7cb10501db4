"""Predict the radio map of a building picture.

    radiodiff predict city.png --tx 120,87 -o map.png

The picture shows buildings bright on dark ground; x counts pixels to the right, y downwards. The map's ending chooses
what is written: .png (8-bit gray, -147 .. -47.84 dB), .npz (exact, with the spread) or .tif (float32 dB).
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("buildings", help="picture of the buildings, a polygon file, or GeoJSON")
    parser.add_argument("--tx", required=True, metavar="X,Y", help="the transmitter, in pixels")
    parser.add_argument("-o", "--output", default="map.png", help="file to write (default map.png)")
    parser.add_argument("--model", help="folder or Hub id; the model in the package where left out")
    parser.add_argument(
        "--adapter", help="LoRA adapter to put on the model: folder, Hub id, or ray_traced, the one in the package"
    )
    parser.add_argument("--cars", help="picture of the cars, for models that see them")
    parser.add_argument("--metres-per-pixel", type=float, default=1.0)
    parser.add_argument(
        "--raster",
        choices=["exact", "radiomapseer"],
        default="exact",
        help="radiomapseer: a mask of that data set, drawn half a pixel off its maps",
    )
    parser.add_argument("--frequency", type=float, default=5.9e9, metavar="HZ")
    parser.add_argument("--steps", type=int, help="number of sampling steps; the model's own where left out")
    parser.add_argument("--num-maps", type=int, default=1, help="samples; several give their mean and spread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tile-size", type=int, help="cut larger maps into tiles of so many pixels")
    parser.add_argument("--device", default=None, help="cpu, cuda, ...; a GPU where there is one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--truth", choices=["dominant_path", "free_space"], help="also score against a physics engine")


def run(args: argparse.Namespace) -> int:
    import time
    from pathlib import Path

    from ..scene import check_map_ending

    scene = _scene(args)  # what the user handed in is checked before the slow imports
    check_map_ending(Path(args.output))
    import torch

    from .. import DEFAULT_MODEL, RadioDiffPipeline
    from ..lora import find_adapter
    from . import choose_device

    device = choose_device(args.device)
    pipe = RadioDiffPipeline.from_pretrained(args.model or DEFAULT_MODEL, dtype=getattr(torch, args.dtype)).to(device)
    if args.adapter:
        pipe.load_lora_weights(find_adapter(args.adapter))
        pipe.fuse_lora()
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": args.steps, "num_maps": args.num_maps, "tile_size": args.tile_size}
    if args.truth:
        pipe(
            scene.crop(0, 0, *scene.shape[::-1]).replace(), **options, generator=args.seed
        )  # compiles the ray kernels
    started = time.perf_counter()
    radio_map = pipe(scene, **options, generator=args.seed).maps[0]
    seconds = time.perf_counter() - started
    path = radio_map.save(args.output)
    print(f"wrote {path.resolve()} ({scene.shape[1]} x {scene.shape[0]} pixels)")
    print(
        f"predicted in {seconds:.2f} s on {device}, gain from {radio_map.gain_db.min():.1f} "
        f"to {radio_map.gain_db.max():.1f} dB"
    )
    if args.truth:
        print(_against_engine(args.truth, scene, radio_map))
    return 0


def _scene(args: argparse.Namespace):
    from pathlib import Path

    from ..scene import RADIOMAPSEER_RASTER_OFFSET, Scene

    try:
        x, y = (float(part) for part in args.tx.split(","))
    except ValueError:
        raise ValueError(f"--tx takes two numbers, X,Y in pixels; got {args.tx!r}") from None
    options = {
        "transmitter": (x, y),
        "cars": args.cars,
        "metres_per_pixel": args.metres_per_pixel,
        "frequency_hz": args.frequency,
        "raster_offset": RADIOMAPSEER_RASTER_OFFSET if args.raster == "radiomapseer" else (0.0, 0.0),
    }
    if Path(args.buildings).suffix.lower() in {".json", ".geojson"}:
        from ..data.layout_files import scene_from_file

        return scene_from_file(args.buildings, **options)
    return Scene(args.buildings, **options)


def _against_engine(name: str, scene, radio_map) -> str:
    import numpy as np

    from .. import engines

    truth = getattr(engines, name)(scene)
    free = ~scene.buildings
    error = (radio_map.gain_db - truth.gain_db)[free]
    nmse = np.square((radio_map.gray - truth.gray)[free]).sum() / np.square(truth.gray[free]).sum()
    return (
        f"against the {name} engine, free ground: NMSE {nmse:.4f} (raw gray), RMSE {np.sqrt(np.mean(error**2)):.2f} dB"
    )

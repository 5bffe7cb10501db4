"""Write what tests/test_default_model.py expects: some held-out scenes, their truth, and the error of the model as
shipped and, on ray-traced maps, with its adapter. Needs Sionna RT (`pip install radiodiff_diffusers[simulate]`).
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

from radiodiff_diffusers import DEFAULT_MODEL, RAY_TRACED_ADAPTER, RAY_TRACED_MODEL, MeanMapModel, RadioDiffPipeline
from radiodiff_diffusers.data.cities import generate_city, transmitters
from radiodiff_diffusers.data.footprints import footprint_tiles
from radiodiff_diffusers.engines import dominant_path, ray_tracing
from radiodiff_diffusers.scene import RadioMap

FOLDER = Path("tests/goldens/default_model")
SEEDS = {"apartments": 5_000_001, "old_town": 5_000_002, "estate": 5_000_003, "perimeter": 5_000_004}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL)
    expected, nmse = {}, []
    for name, seed in SEEDS.items():
        city = generate_city(seed, size=128, style=name)
        place = transmitters(city, 1, np.random.default_rng(seed))[0]
        scene = city.replace(transmitter=place)
        truth = dominant_path(scene).to_image()
        truth.save(FOLDER / f"{name}_gain.png")
        Image.fromarray(scene.buildings.astype(np.uint8) * 255).save(FOLDER / f"{name}_buildings.png")
        expected[name] = [float(v) for v in place]
        gray, free = np.asarray(truth, np.float32), ~scene.buildings
        predicted: RadioMap = pipe(scene.replace(polygons=None), generator=0).maps[0]
        nmse.append(np.square(predicted.gray - gray)[free].sum() / np.square(gray[free]).sum())
    about = {
        "sha256": {
            part: checksum(Path(DEFAULT_MODEL) / part / "diffusion_pytorch_model.safetensors")
            for part in ("unet", "mean_model")
        },
        "nmse": float(np.mean(nmse)),
        "scenes": expected,
        "ray_traced": ray_traced(pipe),
    }
    (FOLDER / "expected.json").write_text(json.dumps(about, indent=2) + "\n")
    print(about["nmse"], [f"{v:.4f}" for v in nmse])


def ray_traced(pipe) -> dict:
    """Two tiles of Florence, seen as masks, by the adapter and by the mean model for ray-traced maps."""
    other = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL, mean_model=MeanMapModel.from_pretrained(RAY_TRACED_MODEL))
    pipe.load_lora_weights(RAY_TRACED_ADAPTER)
    expected, nmse, nmse_of_model = {}, [], []
    for number, tile in enumerate(footprint_tiles("florence", stride=192)[1:9:7]):
        place = transmitters(tile, 1, np.random.default_rng(number))[0]
        scene = tile.replace(transmitter=place)
        name = f"florence_{number}"
        truth = ray_tracing(scene).to_image()
        truth.save(FOLDER / f"{name}_gain.png")
        Image.fromarray(scene.buildings.astype(np.uint8) * 255).save(FOLDER / f"{name}_buildings.png")
        expected[name] = [float(v) for v in place]
        gray = np.asarray(truth, np.float32)
        predicted: RadioMap = pipe(scene.replace(polygons=None), generator=0).maps[0]
        nmse.append(np.square(predicted.gray - gray).sum() / np.square(gray).sum())
        predicted = other(scene.replace(polygons=None)).maps[0]
        nmse_of_model.append(np.square(predicted.gray - gray).sum() / np.square(gray).sum())
    weights = Path(RAY_TRACED_ADAPTER) / "pytorch_lora_weights.safetensors"
    return {
        "sha256": checksum(weights),
        "nmse": float(np.mean(nmse)),
        "sha256_of_model": checksum(Path(RAY_TRACED_MODEL) / "diffusion_pytorch_model.safetensors"),
        "nmse_of_model": float(np.mean(nmse_of_model)),
        "scenes": expected,
    }


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()

"""Write generated images of users to folders, as `radiodiff evaluate generated` and the recipes read them.

    python examples/lightningdit/generate.py runs/micro_doppler_s/model generated --count 50

Image number n of a user always comes from the same noise, so a stopped command goes on when it is given again. A
folder that holds images of another model, or of other settings, is refused.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from tqdm import tqdm

from radiodiff_diffusers import LightningDiTPipeline
from radiodiff_diffusers.data.latents import tokenizer_fingerprint
from radiodiff_diffusers.training.recipe import run_script


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub id of a LightningDiTPipeline")
    parser.add_argument("output", help="folder for user_00/0000.png ...")
    parser.add_argument("--lora", metavar="ADAPTER", help="folder, file or Hub id of an adapter of the pipeline")
    parser.add_argument("--users", type=int, nargs="+", metavar="N", help="classes (default: all)")
    parser.add_argument("--count", type=int, default=50, metavar="N", help="images a user (default: 50)")
    parser.add_argument("--steps", type=int, default=50, metavar="N", help="points in time (default: 50)")
    parser.add_argument("--guidance", type=float, default=4.0, metavar="W", help="guidance scale (default: 4)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at a time (default: 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    args = parser.parse_args(argv)

    pipe = LightningDiTPipeline.from_pretrained(args.pipeline)
    if args.lora:
        pipe.load_lora_weights(args.lora)
    pipe.to(args.device or ("cuda" if torch.cuda.is_available() else "cpu")).set_progress_bar_config(disable=True)
    check_folder(Path(args.output), pipe, {"steps": args.steps, "guidance": args.guidance, "seed": args.seed})
    users = args.users if args.users is not None else range(pipe.transformer.config.num_classes)
    jobs = [(user, n, Path(args.output) / f"user_{user:02d}" / f"{n:04d}.png")
            for user in users for n in range(args.count)]  # fmt: skip
    jobs = [job for job in jobs if not job[2].exists()]
    with tqdm(total=len(jobs), unit="image", desc="generating") as progress:
        for start in range(0, len(jobs), args.batch_size):
            part = jobs[start : start + args.batch_size]
            generators = [torch.Generator().manual_seed(args.seed * 10**9 + user * 10**5 + n) for user, n, _ in part]
            images = pipe(
                [user for user, _, _ in part],
                num_inference_steps=args.steps,
                guidance_scale=args.guidance,
                generator=generators,
            ).images
            for image, (_, _, path) in zip(images, part, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(f".{os.getpid()}.part")
                image.save(partial, format="PNG")
                partial.replace(path)  # never a half-written image under its name
            progress.update(len(part))
    return 0


def check_folder(folder: Path, pipe: LightningDiTPipeline, settings: dict) -> None:
    """Write down what the images in a folder are of; stop where they are of something else."""
    about = {
        "transformer": tokenizer_fingerprint(pipe.transformer),
        "vae": tokenizer_fingerprint(pipe.vae),
        **settings,
    }
    file = folder / "generated.json"
    if file.exists() and json.loads(file.read_text()) != about:
        raise ValueError(f"{folder} holds images of another model or of other settings: take another folder")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    run_script(main)

"""Train the network that gives the default model's map in one pass: what a quick search for the dominant path and a
mask leave out, and how wrong the map may still be.

    python examples/default_model/mean_map.py prepare --data data/made_up data/towns data/florence
    python examples/default_model/mean_map.py train --out runs/mean_map --hours 0.2
    python examples/default_model/mean_map.py export --out runs/mean_map

`prepare` computes every scene's channels once; `train` goes on where it stopped; `export` puts the averaged weights
into the pipeline folder. Time is counted in hours of processor time. The data are those of `train.py`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from train import (
    HELD_OUT_MADE_UP,
    Maps,
    averaged,
    half_precision,
    huber,
    load,
    on_free_ground,
    prepare,
    save,
    score,
    surprise,
    teaching_maps,
)

from radiodiff_diffusers import MeanMapModel, RadioDiffPipeline
from radiodiff_diffusers.saving import open_to_others, tidy

CHANNELS = ["footprint", "coarse_loss", "coarse_turn", "log_distance"]
SECOND_LOOK = "detour_loss"
CACHE = Path("data/mean_map_cache")
ERROR_WEIGHT = 0.002  # of what the error map learns beside the map: it is not to lead


def new_model(args: argparse.Namespace, seed: int = 0) -> MeanMapModel:
    torch.manual_seed(seed)
    second = args.second or None
    model = MeanMapModel(
        args.channels, args.physics, args.patch, args.widths,
        error_map=True, second_look=second, conv_in_kernel=args.in_kernel,
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last)


def train(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    model = new_model(args, args.seed)
    print(f"{model.num_parameters():,} parameters", flush=True)
    ema = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    data = teaching_maps(args.sets, args.cache)
    held_out = {"made_up": slice(-2 * HELD_OUT_MADE_UP, None)}
    watched = {name: Maps([name], held_out.get(name, slice(None)), args.cache) for name in args.watch}
    resume, step, spent = args.out / "resume.pt", 0, 0.0
    if resume.exists():
        step, spent = load(resume, model, ema, optimizer)
    total, shown = args.hours * 3600, spent

    def one_map(planes):
        return model(planes[:, : len(args.channels)])

    while spent < total:
        started = time.process_time()
        rng = np.random.default_rng([args.seed, step])
        for group in optimizer.param_groups:  # warm-up, then a cosine to a fiftieth, over the hours given
            fall = 0.02 + 0.49 * (1 + math.cos(math.pi * spent / total))
            group["lr"] = args.lr * min((step + 1) / 100, 1.0) * fall
        planes, maps, free = data.draw(rng, args.batch)
        with half_precision():
            guess, scale = model(planes[:, : len(model.error_channels)], return_error=True)
        wrong = guess.detach().clamp(-1, 1) - maps
        loss = on_free_ground(huber(guess, maps), maps, free)
        loss = loss + ERROR_WEIGHT * surprise(wrong, scale.clamp_min(2e-3), free)  # from 0.1 dB
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
            ema.step(model.parameters())
        optimizer.zero_grad()
        step += 1
        spent += time.process_time() - started
        if spent - shown > 240 or spent >= total:
            shown = spent
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            scores = {name: score(one_map, maps, 40) for name, maps in watched.items()}
            row = {"step": step, "hours": round(spent / 3600, 3), "loss": round(loss.item(), 5), **scores}
            print(json.dumps(row), flush=True)
            ema.restore(model.parameters())
            save(resume, model, ema, optimizer, step, spent)


def export(args: argparse.Namespace) -> None:
    """The averaged weights in half precision, as the mean model of the pipeline in a folder, or alone in it."""
    model = averaged(new_model(args), args.out)
    if not (args.folder / "model_index.json").exists():
        model.half().eval().save_pretrained(args.folder)
        open_to_others(list(args.folder.glob("*.safetensors")))
        return
    model.half().eval().save_pretrained(args.folder / "mean_model")
    pipeline = RadioDiffPipeline.from_pretrained(args.folder)
    pipeline.register_modules(mean_model=model)
    pipeline.save_config(args.folder)  # the other components stay as they are, to the byte
    tidy(args.folder, pipeline)
    print(args.folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("--data", type=Path, nargs="+", required=True)
    command.add_argument("--workers", type=int, default=os.cpu_count())
    command.add_argument("--simulation", default="DPM", help="folder under gain/")
    train_command, export_command = commands.add_parser("train"), commands.add_parser("export")
    for command in (*commands.choices.values(),):
        command.add_argument("--channels", nargs="+", default=CHANNELS)
        command.add_argument("--second", default=SECOND_LOOK, help="one more channel, for the error map only")
        command.add_argument("--cache", type=Path, default=CACHE, help="where the prepared channels lie")
    for command in (train_command, export_command):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--physics", default="coarse_loss", help="the channel whose map is corrected")
        command.add_argument("--patch", type=int, default=8, help="pixels a side that are folded into channels")
        command.add_argument("--widths", type=int, nargs=3, default=[16, 32, 64])
        command.add_argument("--in-kernel", type=int, default=1, help="patches a side that the first layer sees")
    train_command.add_argument("--sets", nargs="+", default=["made_up", "towns"])
    train_command.add_argument(
        "--watch", nargs="+", default=["made_up", "florence"], help="sets to look at on the way"
    )
    train_command.add_argument("--hours", type=float, default=0.2, help="of processor time")
    train_command.add_argument("--batch", type=int, default=8)
    train_command.add_argument("--lr", type=float, default=1e-3)
    train_command.add_argument("--seed", type=int, default=0)
    export_command.add_argument("--folder", type=Path, default=Path("radiodiff_diffusers/default_model"))
    args = parser.parse_args()
    if args.command == "prepare":
        channels = [*args.channels, *([args.second] if args.second else [])]
        prepare(args.data, args.workers, args.simulation, channels, args.cache)
    elif args.command == "train":
        train(args)
    else:
        export(args)


if __name__ == "__main__":
    main()

"""Train the baseline of the default model: a plain U-Net of the size of the network that gives its maps, on the same
data and channels, for the same time.

    python examples/default_model/plain_unet.py --out runs/plain_unet
    radiodiff evaluate maps data/florence -p default unet:runs/plain_unet/model

The data are those that `mean_map.py prepare` left. Time is counted in seconds of processor time, so that other work on
the machine takes nothing from it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from mean_map import CACHE, CHANNELS
from train import Maps, half_precision, huber, on_free_ground, score, teaching_maps

from radiodiff_diffusers.evaluation.plain_unet import PlainUNet

MODEL = {"patch_size": 4, "attention": True}
WIDTHS = [8, 16, 16, 24]  # as many parameters as the mean model, which has patches of 4 x 4, too


def new_model(seed: int, channels: list[str], widths: list[int]) -> PlainUNet:
    torch.manual_seed(seed)
    return PlainUNet(channels, **MODEL, block_out_channels=widths).to(memory_format=torch.channels_last)


def train(
    out: Path,
    sets: list[str],
    watch: str,
    channels: list[str],
    widths: list[int],
    hours: float,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model = new_model(seed, channels, widths)
    seen = [CHANNELS.index(name) for name in channels]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    ema = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    data = teaching_maps(sets, CACHE)
    held_out = Maps([watch], cache=CACHE)
    done, step, shown = 0.0, 0, 0.0
    while done < hours * 3600:
        started = time.process_time()
        rng = np.random.default_rng([seed, step])
        for group in optimizer.param_groups:
            fall = 0.1 + 0.45 * (1 + math.cos(math.pi * done / hours / 3600))
            group["lr"] = lr * min((step + 1) / 200, 1.0) * fall
        planes, maps, free = data.draw(rng, batch)
        with half_precision():
            guess = model(planes[:, seen].contiguous(memory_format=torch.channels_last))
        loss = on_free_ground(huber(guess.float(), maps), maps, free)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.step(model.parameters())
        optimizer.zero_grad()
        step += 1
        done += time.process_time() - started
        if done - shown > 240 or done >= hours * 3600:
            shown = done
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            row = {"step": step, "hours": round(done / 3600, 3)}
            row |= {watch: score(lambda planes: model(planes[:, seen]), held_out, 40)}
            print(json.dumps(row), flush=True)
            model.save_pretrained(out / "model")
            ema.restore(model.parameters())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["made_up", "towns"])
    parser.add_argument("--watch", default="florence", help="set to look at on the way")
    parser.add_argument("--channels", nargs="+", choices=CHANNELS, default=CHANNELS, help="what it sees")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="channels of each level")
    parser.add_argument("--hours", type=float, default=0.2, help="of processor time")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))

"""Train the baseline of the default model: a plain U-Net of its size, on its data and channels, for the time it took.

    python examples/default_model/plain_unet.py --out runs/plain_unet
    radiodiff evaluate maps data/florence -p default unet:runs/plain_unet/model

The data are those that `train.py prepare` left. Time is counted in seconds of processor time, so that other work on
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
from train import CHANNELS, HELD_OUT_MADE_UP, Maps, huber, on_free_ground

from radiodiff_diffusers.evaluation.plain_unet import PlainUNet

MODEL = {"condition_channels": CHANNELS, "patch_size": 4, "attention": True}
WIDTHS = [32, 48, 72, 96]  # 3.2 million parameters: as many as the default model, which has patches of 4 x 4, too


def new_model(seed: int, widths: list[int]) -> PlainUNet:
    torch.manual_seed(seed)
    return PlainUNet(**MODEL, block_out_channels=widths).to(memory_format=torch.channels_last)


@torch.inference_mode()
def evaluate(model: PlainUNet, data: Maps, count: int = 40) -> dict[str, float]:
    """NMSE and RMSE in dB on free ground, averaged over maps."""
    scores = []
    for row in np.linspace(0, len(data) - 1, min(count, len(data))).astype(int):
        planes, maps, free = data.batch([row])
        guess, truth, ground = (1 + model(planes).clamp(-1, 1)) / 2, (1 + maps) / 2, free > 0
        square = (guess - truth)[ground].square()
        scores.append((float(square.sum() / truth[ground].square().sum()), float(square.mean().sqrt()) * 99.16))
    return {name: round(float(v), 5) for name, v in zip(("nmse", "rmse_db"), np.mean(scores, 0), strict=True)}


def train(
    out: Path, sets: list[str], watch: str, widths: list[int], hours: float, batch: int, lr: float, seed: int
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model = new_model(seed, widths)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    ema = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    data = Maps(sets)
    if "made_up" in sets:
        part, taught = sets.index("made_up"), len(Maps(["made_up"])) - 2 * HELD_OUT_MADE_UP
        data.index = [(k, i) for k, i in data.index if k != part or i < taught]
    held_out = Maps([watch])
    done, step, shown = 0.0, 0, 0.0
    while done < hours * 3600:
        started = time.process_time()
        rng = np.random.default_rng([seed, step])
        for group in optimizer.param_groups:
            fall = 0.1 + 0.45 * (1 + math.cos(math.pi * done / hours / 3600))
            group["lr"] = lr * min((step + 1) / 200, 1.0) * fall
        rows = [int(rng.choice(data.rows_of(name))) for name in rng.integers(len(sets), size=batch)]
        planes, maps, free = data.batch(rows, rng.integers(8, size=batch))
        with torch.autocast("cpu", torch.bfloat16):
            guess = model(planes.contiguous(memory_format=torch.channels_last))
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
            row |= {watch: evaluate(model, held_out)}
            print(json.dumps(row), flush=True)
            model.save_pretrained(out / "model")
            ema.restore(model.parameters())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["made_up", "towns"])
    parser.add_argument("--watch", default="florence", help="set to look at on the way")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS, help="channels of each level")
    parser.add_argument("--hours", type=float, default=0.55, help="of processor time")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))

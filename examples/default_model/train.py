"""Train the model that ships with the package: RadioDiff in pixels, on simulated maps, from nothing.

    python examples/default_model/train.py prepare --data data/made_up data/towns data/florence
    python examples/default_model/train.py train --out runs/default_model --hours 2
    python examples/default_model/train.py export --out runs/default_model

`prepare` computes every scene's channels once. `train` goes on where it stopped; `export` writes the pipeline folder.
Time is counted in hours of processor time, so that other work on the machine takes nothing from it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel

from radiodiff_diffusers import ConstSDEScheduler, RadioDiffPipeline, RadioDiffUNet2DModel, Scene
from radiodiff_diffusers.channels import condition_planes
from radiodiff_diffusers.geometry import rasterize
from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS
from radiodiff_diffusers.scene import RADIOMAPSEER_RASTER_OFFSET, read_image

CHANNELS = ["buildings", "transmitter", "visibility", "obstruction", "log_distance", "detour_loss", "detour_turn"]
CHANNELS += ["outlines_known"]
MODEL = {**RADIODIFF_UNET_PRESETS["tiny"], "condition_channels": CHANNELS, "detail_width": 16}
MODEL["error_map"] = True
WALL_JITTER = 0.4  # pixels: walls of a mask are known to half a pixel, and samples differ in where they are
USUAL_ENERGY = 0.1  # of gray / 255 on free ground, squared
CACHE = Path("data/default_model_cache")
HELD_OUT_MADE_UP = 40  # the last made-up cities choose nothing and teach nothing: they tell how training goes


# Data: every scene's channels and map, once, in flat files that are mapped into memory -------------------------------


def list_maps(folder: Path, simulation: str) -> list[tuple[str, str, int, int]]:
    files = (folder / "gain" / simulation).glob("*.png")
    names = sorted((p.stem for p in files), key=lambda s: tuple(map(int, s.split("_"))))
    return [(str(folder), simulation, *map(int, name.split("_"))) for name in names]


def compute(job: tuple[str, str, int, int], channels: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Channels (float16), map (gray), and where the scene shows buildings, of one simulated map.

    A third of the maps see the buildings as RadioMapSeer's masks draw them (and know that it is half a pixel off), a
    third by their outlines, and a third as a mask at the pixels' centres.
    """
    folder, simulation, map_id, tx_id = job
    root = Path(folder)
    gray = read_image(root / f"gain/{simulation}/{map_id}_{tx_id}.png")
    x, y = json.loads((root / f"antenna/{map_id}.json").read_text())[tx_id]
    transmitter = (x, len(gray) - 1 - y)
    view = (map_id + tx_id) % 3
    if view == 0:
        buildings = read_image(root / f"png/buildings_complete/{map_id}.png") > 127
        scene = Scene(buildings, transmitter, raster_offset=RADIOMAPSEER_RASTER_OFFSET)
    else:
        rings = json.loads((root / f"polygon/buildings_complete/{map_id}.json").read_text())
        outlines = tuple((np.asarray(ring, float) * (1, -1) + (-1, len(gray)),) for ring in rings)
        scene = Scene(rasterize(outlines, gray.shape), transmitter, polygons=outlines if view == 1 else None)
    return condition_planes(scene, channels).astype(np.float16), gray, scene.footprint


def prepare(folders: list[Path], workers: int, simulation: str, channels: list[str], cache: Path = CACHE) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        jobs = list_maps(folder, simulation)
        size = read_image(folder / f"gain/{simulation}/0_0.png").shape
        planes = np.lib.format.open_memmap(
            cache / f"{folder.name}_planes.npy", "w+", np.float16, (len(jobs), len(channels), *size)
        )
        maps = np.lib.format.open_memmap(cache / f"{folder.name}_maps.npy", "w+", np.uint8, (len(jobs), *size))
        free = np.lib.format.open_memmap(cache / f"{folder.name}_free.npy", "w+", np.bool_, (len(jobs), *size))
        with ProcessPoolExecutor(workers) as pool:
            for i, (plane, gray, mask) in enumerate(pool.map(partial(compute, channels=channels), jobs, chunksize=16)):
                # a dominant path reaches every free pixel, rays do not: no signal is then what is to be known
                planes[i], maps[i], free[i] = plane, gray, ~mask & ((gray > 0) | (simulation != "DPM"))
        (cache / f"{folder.name}.json").write_text(json.dumps(jobs))
        print(f"{folder}: {len(jobs)} maps", flush=True)


class Maps:
    """Prepared maps of several folders as one list; `batch` gives tensors, turned one of the eight ways."""

    def __init__(self, names: list[str], part: slice = slice(None), cache: Path = CACHE):
        self.parts = [
            [np.load(cache / f"{n}_{kind}.npy", mmap_mode="r") for kind in ("planes", "maps", "free")] for n in names
        ]
        self.index = [(k, i) for k, (planes, _, _) in enumerate(self.parts) for i in range(len(planes))[part]]

    def __len__(self) -> int:
        return len(self.index)

    def rows_of(self, part: int) -> np.ndarray:
        if not hasattr(self, "_rows"):
            parts = np.array([k for k, _ in self.index])
            self._rows = [np.flatnonzero(parts == k) for k in range(len(self.parts))]
        return self._rows[part]

    def draw(self, rng: np.random.Generator, size: int) -> tuple[torch.Tensor, ...]:
        """A batch for training: the sets equally often, for real towns are few and dense and made-up cities many and
        open; each map turned at random."""
        rows = [int(rng.choice(self.rows_of(part))) for part in rng.integers(len(self.parts), size=size)]
        return self.batch(rows, rng.integers(8, size=size))

    def batch(self, rows: list[int], turns: np.ndarray | None = None) -> tuple[torch.Tensor, ...]:
        out = []
        for n, row in enumerate(rows):
            k, i = self.index[row]
            arrays = [part[i] for part in self.parts[k]]
            if turns is not None:
                arrays = [np.rot90(a, turns[n] % 4, (-2, -1)) for a in arrays]
                arrays = [a.swapaxes(-2, -1) if turns[n] >= 4 else a for a in arrays]
            out.append([torch.from_numpy(np.array(a)) for a in arrays])
        planes, maps, free = (torch.stack(column) for column in zip(*out, strict=True))
        return planes.float(), maps[:, None].float() / 127.5 - 1, free[:, None].float()


def teaching_maps(sets: list[str], cache: Path = CACHE) -> Maps:
    """The maps of some sets without the made-up cities that are held out."""
    data = Maps(sets, cache=cache)
    if "made_up" in sets:
        part, taught = sets.index("made_up"), len(Maps(["made_up"], cache=cache)) - 2 * HELD_OUT_MADE_UP
        data.index = [(k, i) for k, i in data.index if k != part or i < taught]
    return data


# Training ----------------------------------------------------------------------------------------------------------


def new_model(seed: int, channels: list[str] = CHANNELS) -> RadioDiffUNet2DModel:
    torch.manual_seed(seed)
    model = RadioDiffUNet2DModel(**{**MODEL, "condition_channels": channels})
    start_from_physics(model)
    return model.to(memory_format=torch.channels_last)


def start_from_physics(model: RadioDiffUNet2DModel) -> None:
    """Set the output layers so that the first guess is what the physics say, one of the channels itself: the dominant
    path, or the reflected rays where the model sees them."""
    channels = model.config.condition_channels
    physics = "reflected_loss" if "reflected_loss" in channels else "detour_loss"
    head = model.drift_decoder.detail
    torch.nn.init.zeros_(head.conv2.weight)
    torch.nn.init.zeros_(head.conv2.bias)
    torch.nn.init.zeros_(head.skip.weight)
    # gain = -47.85 dB - 80 dB (plane + 1), on a scale of 49.58 dB a unit round -97.42 dB; at t = 1 the drift is -map,
    # and the network's part of it is divided by sqrt(2)
    slope, offset = -80 / 49.58, (-47.85 - 80 + 97.42) / 49.58
    with torch.no_grad():
        head.skip.weight[0, channels.index(physics)] = -math.sqrt(2) * slope
        head.skip.bias.fill_(-math.sqrt(2) * offset)


def half_precision() -> torch.autocast:
    """bfloat16 on processors that are faster with it than in float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.backends.cpu.get_cpu_capability() == "AVX512")


def predict(model, noised, t, planes) -> tuple[torch.Tensor, torch.Tensor]:
    with half_precision():
        drift, noise = model(noised, t, planes).sample.float().chunk(2, dim=1)
    return drift, noise


def on_free_ground(error: torch.Tensor, maps: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """The mean over free ground, and over maps by their energy, as the NMSE counts them: 1 dB costs more where all is
    faint."""
    ground = free.sum((1, 2, 3)).clamp_min(1)
    energy = (((1 + maps) / 2).square() * free).sum((1, 2, 3)) / ground
    weight = (USUAL_ENERGY / energy.clamp_min(1e-6)).clamp(0.25, 4)
    return ((error * free).sum((1, 2, 3)) / ground * weight).mean()


def huber(guess: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Squared error up to 10 dB, linear beyond: some maps cannot be known from the mask (a transmitter in a gap of one
    pixel is in the street or walled in, 30 dB apart), and a few such maps would else lead the training."""
    return 2 * torch.nn.functional.huber_loss(guess, maps, reduction="none", delta=0.2)


def mean_loss(model, planes, maps, free) -> torch.Tensor:
    """From an empty start the model gives one map, the mean: regression."""
    drift, _ = predict(model, torch.zeros_like(maps), torch.ones(len(maps)), planes)
    return on_free_ground(huber(-drift, maps), maps, free)


def surprise(wrong: torch.Tensor, scale: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """How little errors were to be expected from a Student distribution with two degrees of freedom: its tails are
    heavy, as theirs are, and a few large ones do not lead."""
    return ((1.5 * (1 + (wrong / scale).square() / 2).log() + scale.log()) * free).sum() / free.sum()


def denoising_loss(model, scheduler, planes, maps, free, generator) -> torch.Tensor:
    """Drift and noise at any time, for those who take more than one step."""
    noise = torch.randn(maps.shape, generator=generator)
    t = scheduler.sample_timesteps(len(maps), generator)
    drift, predicted = predict(model, scheduler.add_noise(maps, noise, t), t, planes)
    return on_free_ground(huber(-drift, maps) + 0.1 * (predicted - noise).square(), maps, free)


@torch.inference_mode()
def score(predict_map, data: Maps, count: int) -> dict[str, float]:
    """NMSE and RMSE in dB on free ground of maps in [-1, 1] from planes: per map, averaged."""
    scores = []
    for row in np.linspace(0, len(data) - 1, min(count, len(data))).astype(int):
        planes, maps, free = data.batch([row])
        guess, truth, ground = (1 + predict_map(planes).clamp(-1, 1)) / 2, (1 + maps) / 2, free > 0
        square = (guess - truth)[ground].square()
        nmse = square.sum() / truth[ground].square().sum()
        scores.append((float(nmse), float(square.mean().sqrt()) * 99.16))
    return {name: round(float(v), 5) for name, v in zip(("nmse", "rmse_db"), np.mean(scores, 0), strict=True)}


def evaluate(model, data: Maps, count: int) -> dict[str, float]:
    """One-step maps' scores."""
    model.eval()
    scores = score(lambda planes: -predict(model, torch.zeros_like(planes[:, :1]), 1.0, planes)[0], data, count)
    model.train()
    return scores


def train(
    out: Path,
    train_sets: list[str],
    hours: float,
    batch: int,
    lr: float,
    denoising: float,
    seed: int,
    steps: int,
    init: Path | None,
    channels: list[str],
    watch: list[str],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model, scheduler = new_model(seed, channels), ConstSDEScheduler()
    ema = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    data = teaching_maps(train_sets)
    held_out = {"made_up": slice(-2 * HELD_OUT_MADE_UP, None)}
    watched = {name: Maps([name], held_out.get(name, slice(None))) for name in watch}
    resume, done, spent = out / "resume.pt", 0, 0.0
    if init and not resume.exists():
        model.load_state_dict(torch.load(init, weights_only=True)["model"])
        start_from_physics(model)
        ema = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    if resume.exists():
        done, spent = load(resume, model, ema, optimizer)
    started = last = time.process_time()
    total = hours * 3600
    log = (out / "log.jsonl").open("a")
    running = []
    model.train()
    for step in range(done, steps):
        rng = np.random.default_rng([seed, step])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        now = spent + time.process_time() - started
        progress = min(now / total, 1.0)
        if progress >= 1.0:
            break
        for group in optimizer.param_groups:  # warm-up, then a cosine to a tenth, over the hours given
            group["lr"] = lr * min((step + 1) / 200, 1.0) * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
        planes, maps, free = data.draw(rng, batch)
        planes = planes.contiguous(memory_format=torch.channels_last)
        if rng.random() < denoising:
            loss = denoising_loss(model, scheduler, planes, maps, free, generator)
        else:
            loss = mean_loss(model, planes, maps, free)
            running.append(loss.item())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()
            ema.step(model.parameters())
        optimizer.zero_grad()
        if time.process_time() - last > 240 or step == steps - 1:
            last = time.process_time()
            ema.store(model.parameters())
            ema.copy_to(model.parameters())
            scores = {name: evaluate(model, maps_, 40) for name, maps_ in watched.items()}
            ema.restore(model.parameters())
            row = {"step": step + 1, "hours": now / 3600, "loss": float(np.mean(running[-200:] or [0])), **scores}
            print(json.dumps(row), flush=True)
            log.write(json.dumps(row) + "\n")
            log.flush()
            save(resume, model, ema, optimizer, step + 1, spent + time.process_time() - started)
    save(resume, model, ema, optimizer, step + 1, spent + time.process_time() - started)


def train_error_map(out: Path, train_sets: list[str], steps: int, batch: int, lr: float, seed: int) -> None:
    """Teach the second decoder to say at t = 1 how wrong the map is (see `surprise`).

    All else stands still, so the maps stay what they are. A fifth of the batches keep it a noise decoder at t < 1.
    """
    model, scheduler = averaged(RadioDiffUNet2DModel(**MODEL), out), ConstSDEScheduler()
    model.requires_grad_(False).to(memory_format=torch.channels_last)
    decoder = model.noise_decoder.requires_grad_(True)
    ema = EMAModel(decoder.parameters(), decay=0.99)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    data = Maps(train_sets)
    started, running = time.monotonic(), []
    model.eval()
    for step in range(steps):
        rng = np.random.default_rng([seed, step])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 20, 1.0) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        planes, maps, free = data.draw(rng, batch)
        planes = planes.contiguous(memory_format=torch.channels_last)
        if rng.random() < 0.2:
            loss = denoising_loss(model, scheduler, planes, maps, free, generator)
        else:
            with half_precision():
                output = model(torch.zeros_like(maps), torch.ones(batch), planes, return_error=True)
            drift, scale = output.sample.float()[:, :1], output.error.float().clamp_min(2e-3)  # 0.1 dB
            loss = surprise(-drift.clamp(-1, 1) - maps, scale, free)
            running.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        ema.step(decoder.parameters())
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            print(f"{step + 1}: {np.mean(running[-50:]):.4f}, {time.monotonic() - started:.0f} s", flush=True)
    ema.copy_to(decoder.parameters())
    torch.save(decoder.state_dict(), out / "error_map.pt")


def averaged(model: torch.nn.Module, out: Path) -> torch.nn.Module:
    """A model of a run's kind with the averaged weights of that run."""
    saved = torch.load(out / "resume.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    ema = EMAModel(model.parameters())
    ema.load_state_dict(saved["ema"])
    ema.copy_to(model.parameters())
    return model


def load(path: Path, model, ema, optimizer) -> tuple[int, float]:
    """Go on where `save` was called: the step, and the seconds spent so far."""
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    ema.load_state_dict(saved["ema"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"], saved["seconds"]


def save(path: Path, model, ema, optimizer, step: int, seconds: float) -> None:
    state = {"model": model.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**state, "step": step, "seconds": seconds}, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def export(out: Path, folder: Path, num_inference_steps: int) -> None:
    """The averaged weights as a pipeline folder, in half precision."""
    model = averaged(RadioDiffUNet2DModel(**MODEL), out)
    model.noise_decoder.load_state_dict(torch.load(out / "error_map.pt", weights_only=True))
    scheduler = ConstSDEScheduler(final_denoise=False, clip_sample=True)
    pipeline = RadioDiffPipeline(
        unet=model.half().eval(),
        scheduler=scheduler,
        num_inference_steps=num_inference_steps,
        mean_map=True,
        wall_jitter=WALL_JITTER,
    )
    pipeline.save_pretrained(folder)
    print(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("prepare")
    command.add_argument("--data", type=Path, nargs="+", required=True)
    command.add_argument("--workers", type=int, default=os.cpu_count())
    command.add_argument("--simulation", default="DPM", help="folder under gain/")
    command.add_argument("--channels", nargs="+", default=CHANNELS)
    command.add_argument("--cache", type=Path, default=CACHE, help="where to leave them")
    command = commands.add_parser("train")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--sets", nargs="+", default=["made_up", "towns"])
    command.add_argument("--hours", type=float, default=2.0, help="of processor time")
    command.add_argument("--channels", nargs="+", default=CHANNELS, help="those that the sets were prepared with")
    command.add_argument("--watch", nargs="+", default=["made_up", "florence"], help="sets to look at on the way")
    command.add_argument("--steps", type=int, default=10**9)
    command.add_argument("--batch", type=int, default=8)
    command.add_argument("--lr", type=float, default=6e-4)
    command.add_argument("--denoising", type=float, default=0.1, help="share of batches at t < 1")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--init", type=Path, help="another run's resume.pt: start from its weights, with a fresh schedule"
    )
    command = commands.add_parser("error-map")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--sets", nargs="+", default=["made_up", "towns"])
    command.add_argument("--steps", type=int, default=500)
    command.add_argument("--batch", type=int, default=8)
    command.add_argument("--lr", type=float, default=1e-3)
    command.add_argument("--seed", type=int, default=1)
    command = commands.add_parser("export")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--folder", type=Path, default=Path("radiodiff_diffusers/default_model"))
    command.add_argument("--steps", type=int, default=1)
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.data, args.workers, args.simulation, args.channels, args.cache)
    elif args.command == "train":
        train(
            args.out,
            args.sets,
            args.hours,
            args.batch,
            args.lr,
            args.denoising,
            args.seed,
            args.steps,
            args.init,
            args.channels,
            args.watch,
        )
    elif args.command == "error-map":
        train_error_map(args.out, args.sets, args.steps, args.batch, args.lr, args.seed)
    else:
        export(args.out, args.folder, args.steps)


if __name__ == "__main__":
    main()

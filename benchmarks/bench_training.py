"""How fast, and in how much memory, is a training step of the base preset? Ours beside the original's, on this
machine.

    python benchmarks/bench_training.py                                  # ours
    python benchmarks/bench_training.py --original path/to/RadioDiff     # and the original's model and loss, paired

One step: a batch of two 256 x 256 maps and conditions, encoded by the autoencoder (as in training without cached
latents), U-Net, loss, backward pass, clipping, AdamW. Our autoencoder is loaded from a folder, as a run does it: what
is not used of it (the decoder) stays on the disk. Every variant runs in a process of its own, so that its peak memory
is its own; they take turns, `--rounds` times, and the median step counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

# of the words after the precision the first is train.gradient_checkpointing, the others are train.half_gradients
VARIANTS = (
    "ours fp32",
    "ours bf16",
    "ours bf16 half gradients",
    "ours fp32 checkpointing",
    "ours bf16 checkpointing",
    "ours bf16 checkpointing, half gradients",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", help="a clone of UNIC-Lab/RadioDiff; needs einops and fvcore")
    parser.add_argument("--stubs", help="folder with stand-ins for einops and fvcore, where they are not installed")
    parser.add_argument(
        "--steps", type=int, default=3, help="timed steps a process, after one to warm up (default: 3)"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's)")
    parser.add_argument("--variants", nargs="*", help="only these, such as 'ours fp32' original")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--vae", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.worker, args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", SAVE_AUTOENCODER, folder], check=True)
        args.vae = folder
        compare(args)


# In a process of its own, which leaves this one's memory alone.
SAVE_AUTOENCODER = """
import sys
import tempfile
from diffusers import AutoencoderKL
from radiodiff_diffusers.models.presets import RADIODIFF_AUTOENCODER
AutoencoderKL(**RADIODIFF_AUTOENCODER).save_pretrained(sys.argv[1])
"""


def compare(args) -> None:
    variants = args.variants or [*(["original"] if args.original else []), *VARIANTS]
    times: dict[str, list[float]] = {v: [] for v in variants}
    cpu_times: dict[str, list[float]] = {v: [] for v in variants}
    memory: dict[str, float] = {}
    for _ in range(args.rounds):
        for variant in variants:
            command = [sys.executable, __file__, "--worker", variant, "--steps", str(args.steps)]
            for name in ("original", "stubs", "threads", "vae"):
                if getattr(args, name):
                    command += [f"--{name}", str(getattr(args, name))]
            result = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            times[variant] += result["seconds"]
            cpu_times[variant] += result["cpu_seconds"]
            memory[variant] = max(memory.get(variant, 0.0), result["memory_gb"])
    # processor time beside wall time: where others use the machine as well, it is the steadier of the two
    print(f"{'variant':<42}{'s':>8}{'faster':>8}{'CPU s':>9}{'faster':>8}{'peak GB':>9}{'share':>7}")
    base, cpu_base = (statistics.median(t[variants[0]]) for t in (times, cpu_times))
    for variant in variants:
        step, cpu = statistics.median(times[variant]), statistics.median(cpu_times[variant])
        peak, share = memory[variant], memory[variant] / memory[variants[0]]
        print(f"{variant:<42}{step:>8.2f}{base / step:>8.2f}{cpu:>9.2f}{cpu_base / cpu:>8.2f}", end="")
        print(f"{peak:>9.2f}{share:>7.2f}")


def measure(variant: str, args) -> dict:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    step = original_step(args.original, args.stubs) if variant == "original" else our_step(variant, args.vae)
    seconds, cpu_seconds = [], []
    for number in range(args.steps + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "memory_gb": peak}


def our_step(variant: str, vae_folder: str):
    import torch

    from radiodiff_diffusers import ConstSDEScheduler, RadioDiffUNet2DModel
    from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS
    from radiodiff_diffusers.training.config import TrainConfig
    from radiodiff_diffusers.training.diffusion import DiffusionLossConfig, diffusion_step
    from radiodiff_diffusers.training.recipe import load_frozen_vae, make_adamw

    device = "cuda" if torch.cuda.is_available() else "cpu"
    unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["base"]).to(device).train()
    vae = load_frozen_vae(vae_folder, torch.device(device))
    if "checkpointing" in variant:
        unet.enable_gradient_checkpointing()
    config = TrainConfig(learning_rate=5e-5, half_gradients="half gradients" in variant)
    optimizer, scheduler = make_adamw(unet, config), ConstSDEScheduler()
    batch = {
        "image": torch.rand(2, 1, 256, 256, device=device) * 2 - 1,
        "condition": torch.rand(2, 3, 256, 256, device=device) * 2 - 1,
        "seed": [0, 0],
        "number": [0, 1],
    }

    def step():
        with torch.autocast(device, torch.bfloat16, enabled="bf16" in variant):
            loss, _ = diffusion_step(unet, scheduler, vae, batch, DiffusionLossConfig())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def original_step(clone: str, stubs: str | None):
    """The original's U-Net and latent diffusion loss, put together as its trainer does."""
    import torch

    root = Path(clone).resolve()
    sys.path[:0] = [p for p in (stubs, str(root)) if p]
    package = types.ModuleType("denoising_diffusion_pytorch")
    package.__path__ = [str(root / "denoising_diffusion_pytorch")]  # without its __init__, which imports far more
    sys.modules["denoising_diffusion_pytorch"] = package
    from denoising_diffusion_pytorch.mask_cond_unet import Unet
    from diffusers import AutoencoderKL
    from fvcore.common.config import CfgNode

    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = CfgNode(
        cond_pe=False, input_size=[80, 80], cond_feature_size=[80, 80], cond_net="swin", num_pos_feats=128,
        without_pretrain=True, fix_bb=False,
    )  # fmt: skip
    windows = [[8, 8], [4, 4], [2, 2], [1, 1]]
    unet = Unet(
        dim=128, dim_mults=(1, 2, 4, 4), channels=3, cond_in_dim=3, cond_dim=128, cond_dim_mults=(2, 4),
        window_sizes1=windows, window_sizes2=windows, fourier_scale=16, carsDPM=False, cfg=config,
    ).to(device).train()  # fmt: skip
    # the same architecture as the original's own (its weights convert one to one), so that the U-Nets are compared
    vae = AutoencoderKL(  # RADIODIFF_AUTOENCODER, written out: importing it would count as the original's memory
        in_channels=1, out_channels=1, latent_channels=3, block_out_channels=[128, 256, 512], layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    ).to(device).eval().requires_grad_(False)  # fmt: skip
    optimizer = torch.optim.AdamW(unet.parameters(), lr=5e-5, weight_decay=1e-4)
    image = torch.rand(2, 1, 256, 256, device=device) * 2 - 1
    condition = torch.rand(2, 3, 256, 256, device=device) * 2 - 1

    def step():
        with torch.no_grad():
            x0 = 0.3 * vae.encode(image).latent_dist.sample()
        t = torch.rand(2, device=device) * (1 - 1e-4) + 1e-4
        noise, time_ = torch.randn_like(x0), t.view(-1, 1, 1, 1)
        drift, predicted = unet(x0 - x0 * time_ + time_.sqrt() * noise, t, condition)
        first, second = 2 * torch.exp(1 - t), torch.exp(t.sqrt())
        squares = first * (drift + x0).square().mean([1, 2, 3]) + second * (predicted - noise).square().mean([1, 2, 3])
        absolute = first * (drift + x0).abs().mean([1, 2, 3]) + second * (predicted - noise).abs().mean([1, 2, 3])
        ((squares + absolute) / 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main()

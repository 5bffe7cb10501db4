"""Where the time of a prediction goes: condition, U-Net step, decoding, and a whole map, in each precision.

    python benchmarks/bench_inference.py --preset base small --precision fp32 bf16

`base` is the published RadioDiff's network (random weights: the time does not depend on them) with its autoencoder;
`small` and `tiny` work on pixels and have no decoding. Each row is measured in a process of its own, so that the peak
memory is its own. `--original PATH` (a checkout of UNIC-Lab/RadioDiff whose requirements are installed) times the
original network's step beside ours of `base`, in turn and with the same weights.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SIDE = 256


def timed(function, repeats: int = 1) -> float:
    """The least seconds of several calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def make_unet(preset: str):
    """An untrained U-Net of that preset, and a sample, a time and a condition for it."""
    import torch

    from radiodiff_diffusers import RadioDiffUNet2DModel
    from radiodiff_diffusers.models import RADIODIFF_UNET_PRESETS

    torch.manual_seed(0)
    config = RADIODIFF_UNET_PRESETS[preset]
    side = SIDE // 4 if is_latent(preset) else SIDE
    sample = torch.randn(1, config["in_channels"], side, side)
    condition = torch.rand(1, len(config["condition_channels"]), SIDE, SIDE) * 2 - 1
    return RadioDiffUNet2DModel(**config).eval(), sample, torch.tensor([0.4]), condition


def is_latent(preset: str) -> bool:
    return preset == "base"


def make_autoencoder():
    """The published RadioDiff's autoencoder, untrained."""
    from diffusers import AutoencoderKL

    from radiodiff_diffusers.models.presets import RADIODIFF_AUTOENCODER

    return AutoencoderKL(**RADIODIFF_AUTOENCODER).eval()


def measure(preset: str, precision: str, steps: int, repeats: int) -> dict:
    import torch

    from radiodiff_diffusers import ConstSDEScheduler, RadioDiffPipeline

    dtype = getattr(torch, DTYPES[precision])
    unet, sample, t, condition = make_unet(preset)
    unet = unet.to(dtype)
    vae = make_autoencoder().to(dtype) if is_latent(preset) else None
    pipe = RadioDiffPipeline(unet, ConstSDEScheduler(), vae)
    pipe.set_progress_bar_config(disable=True)

    def whole_map():
        pipe(condition, num_inference_steps=steps, generator=0)

    whole_map()  # the first call of everything is slower
    result = {"map": timed(whole_map, repeats)}
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with torch.inference_mode():
        features = unet.encode_condition(condition)
        result["condition"] = timed(lambda: unet.encode_condition(condition), repeats)
        result["step"] = timed(lambda: unet(sample, t, condition_features=features), repeats)
        if vae is not None:
            result["decode"] = timed(lambda: pipe.decode_latents(sample), repeats)
    return result


def compare(folder: str, repeats: int) -> dict:
    """Seconds of one step of the original's network and of ours with its weights, measured in turn."""
    import torch

    sys.path.insert(0, folder)
    from denoising_diffusion_pytorch.mask_cond_unet import Unet
    from fvcore.common.config import CfgNode

    from radiodiff_diffusers.convert import unet_to_original

    unet, *inputs = make_unet("base")
    sample, t, condition = inputs
    windows = [[size, size] for size in unet.config.window_sizes]
    cfg = CfgNode({"cond_net": "swin", "without_pretrain": True, "input_size": [80, 80], "fix_bb": False})
    network = Unet(
        dim=128, dim_mults=(1, 2, 4, 4), channels=3, window_sizes1=windows, window_sizes2=windows, cfg=cfg
    ).eval()
    network.load_state_dict(unet_to_original(unet), strict=True)
    with torch.no_grad():
        features = unet.encode_condition(condition)
        difference = torch.cat(network(*inputs), dim=1) - unet(sample, t, condition_features=features).sample
        pairs = [
            (timed(lambda: network(*inputs)), timed(lambda: unet(sample, t, condition_features=features)))
            for _ in range(repeats)
        ]
    original, ours = (min(column) for column in zip(*pairs, strict=True))
    return {"original": original, "ours": ours, "difference": float(difference.abs().max())}


def in_a_process(*arguments) -> dict:
    """What `measure` or `compare` returns, run by this file in a fresh process."""
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["base", "small"], choices=["base", "small", "tiny"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=5, help="sampling steps of a map")
    parser.add_argument("--repeats", type=int, default=3, help="the least of so many is reported")
    parser.add_argument("--original", metavar="PATH", help="a checkout of the original, to time in turn with ours")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, *values = args.child
        if name == "measure":
            result = measure(values[0], values[1], int(values[2]), int(values[3]))
        else:
            result = compare(values[0], int(values[1]))
        print(json.dumps(result))
        return
    print(f"One map of {SIDE} x {SIDE}, {args.steps} steps; seconds\n")
    print("| preset | precision | condition | U-Net step | decoding | whole map | peak MB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for preset in args.preset:
        for precision in args.precision:
            r = in_a_process("measure", preset, precision, args.steps, args.repeats)
            decode = f"{r['decode']:.2f}" if "decode" in r else "none"
            print(
                f"| {preset} | {precision} | {r['condition']:.3f} | {r['step']:.3f} | {decode} | {r['map']:.2f}"
                f" | {r['peak_mb']:.0f} |",
                flush=True,
            )
    if args.original:
        r = in_a_process("compare", args.original, args.repeats)
        print(
            f"\nThe original's step, condition included as it runs: {r['original']:.2f} s; ours {r['ours']:.2f} s:"
            f" {r['original'] / r['ours']:.2f}x. Largest difference of the outputs: {r['difference']:.1e}."
        )


if __name__ == "__main__":
    main()

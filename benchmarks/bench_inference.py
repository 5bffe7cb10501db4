"""Where the time of a prediction goes: condition, U-Net step, decoding, and a whole map, in each precision.

    python benchmarks/bench_inference.py --preset base --precision fp32 bf16

`base` is the published RadioDiff's network (random weights: the time does not depend on them) with its autoencoder;
`small` and `tiny` work on pixels and have no decoding. Each precision runs in a fresh process, so that the peak memory
is its own. `--original PATH` (a checkout of UNIC-Lab/RadioDiff whose requirements are installed) times the original
network's step in the same run, in turn with ours and with the same weights.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def timed(function, repeats: int = 1) -> float:
    """The least seconds of several calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def original_step(folder: str, unet, inputs):
    """A function that runs the original's network once, with the weights of ours."""
    import torch

    from radiodiff_diffusers.convert import unet_to_original

    sys.path.insert(0, folder)
    from denoising_diffusion_pytorch.mask_cond_unet import Unet
    from fvcore.common.config import CfgNode

    windows = [[size, size] for size in unet.config.window_sizes]
    cfg = CfgNode({"cond_net": "swin", "without_pretrain": True, "input_size": [80, 80], "fix_bb": False})
    network = Unet(
        dim=128, dim_mults=(1, 2, 4, 4), channels=3, window_sizes1=windows, window_sizes2=windows, cfg=cfg
    ).eval()
    network.load_state_dict(unet_to_original(unet), strict=True)
    sample, t, condition = inputs
    difference = (torch.cat(network(*inputs), dim=1) - unet(sample, t, condition).sample).abs().max()
    return lambda: network(*inputs), float(difference)


def measure(preset: str, precision: str, steps: int, repeats: int, original: str | None) -> dict:
    import torch
    from diffusers import AutoencoderKL

    from radiodiff_diffusers import ConstSDEScheduler, RadioDiffUNet2DModel
    from radiodiff_diffusers.models import RADIODIFF_UNET_PRESETS

    torch.manual_seed(0)
    dtype = getattr(torch, DTYPES[precision])
    config = RADIODIFF_UNET_PRESETS[preset]
    unet = RadioDiffUNet2DModel(**config).eval()
    latent = config["in_channels"] == 3
    side = 256 // 4 if latent else 256
    sample = torch.randn(1, config["in_channels"], side, side)
    condition, t = torch.rand(1, len(config["condition_channels"]), 256, 256) * 2 - 1, torch.tensor([0.4])
    result = {}
    with torch.no_grad():
        if original:
            run, result["difference"] = original_step(original, unet, (sample, t, condition))
            features = unet.encode_condition(condition)
            pairs = [(timed(run), timed(lambda: unet(sample, t, condition_features=features))) for _ in range(repeats)]
            result["original_step"] = min(pair[0] for pair in pairs)
            result["paired_step"] = min(pair[1] for pair in pairs)
            del run
        unet = unet.to(dtype)
        features = unet.encode_condition(condition)
        unet(sample, t, condition_features=features)
        result["condition"] = timed(lambda: unet.encode_condition(condition), repeats)
        result["step"] = timed(lambda: unet(sample, t, condition_features=features), repeats)
        result["decode"] = 0.0
        if latent:
            vae = AutoencoderKL(
                in_channels=1,
                out_channels=1,
                latent_channels=3,
                block_out_channels=(128, 256, 512),
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
            ).to(dtype)
            result["decode"] = timed(lambda: vae.decode(sample.to(dtype)), repeats)

        def network_part_of_a_map():
            scheduler = ConstSDEScheduler()
            scheduler.set_timesteps(steps)
            features, x = unet.encode_condition(condition), sample
            for time_now in scheduler.timesteps:
                output = unet(x, time_now, condition_features=features).sample
                x = scheduler.step(output, time_now, x).prev_sample

        result["map_without_decoding"] = timed(network_part_of_a_map)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", help="base (default), small or tiny")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--steps", type=int, default=5, help="sampling steps of a map")
    parser.add_argument("--repeats", type=int, default=3, help="the least of so many is reported")
    parser.add_argument("--original", metavar="PATH", help="a checkout of the original, to time in turn with ours")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.json:
        print(json.dumps(measure(args.preset, args.precision[0], args.steps, args.repeats, args.original)))
        return
    print(f"{args.preset}, 256 x 256, seconds")
    print("| precision | condition | U-Net step | decoding | map of", args.steps, "steps, decoding apart | peak MB |")
    print("|---|---|---|---|---|---|")
    for precision in args.precision:
        command = [sys.executable, __file__, "--json", "--preset", args.preset, "--precision", precision]
        command += ["--steps", str(args.steps), "--repeats", str(args.repeats)]
        command += ["--original", args.original] if args.original and precision == "fp32" else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        r = json.loads(output.splitlines()[-1])
        print(
            f"| {precision} | {r['condition']:.2f} | {r['step']:.2f} | {r['decode']:.2f}"
            f" | {r['map_without_decoding']:.2f} | {r['peak_mb']:.0f} |"
        )
        if "original_step" in r:
            ratio = r["original_step"] / r["paired_step"]
            print(
                f"\nThe original's step, condition included, as it runs: {r['original_step']:.2f} s; ours"
                f" {r['paired_step']:.2f} s: {ratio:.2f}x; largest difference of the outputs {r['difference']:.1e}.\n"
            )


if __name__ == "__main__":
    main()

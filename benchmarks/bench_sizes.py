"""How time and memory of a prediction grow with the map: the default model in one piece and in tiles.

    python benchmarks/bench_sizes.py --sizes 256 512 1024 2048 4096

Each size runs in a fresh process, so that the peak is its own. `channels` is the time of the ray channels alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import time


def measure(size: int, tile: int | None) -> dict[str, float]:
    import numpy as np
    import torch

    from radiodiff_diffusers import DEFAULT_MODEL, RadioDiffPipeline
    from radiodiff_diffusers.channels import condition_planes
    from radiodiff_diffusers.data.cities import generate_city, transmitters

    torch.set_num_threads(2)
    pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL)
    pipe.set_progress_bar_config(disable=True)
    small = generate_city(1, size=64).replace(transmitter=(0, 0))
    pipe(small, generator=0, tile_size=None if tile is None else 32)  # compiles the kernels
    city = generate_city(1, size=size)
    scene = city.replace(transmitter=transmitters(city, 1, np.random.default_rng(0))[0], polygons=None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    condition_planes(scene, pipe.mean_model.config.condition_channels)  # kept by the scene
    channels = time.perf_counter() - started
    pipe(scene, generator=0, tile_size=tile)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "channels": channels, "above": (peak - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096])
    parser.add_argument("--tile", type=int, default=256, help="side of the tiles; 0 is one piece")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.tile or None)))
        return
    print("| size | seconds | of it channels | microseconds a pixel | MB above loading |\n|---|---|---|---|---|")
    for size in args.sizes:
        command = [sys.executable, __file__, "--one", str(size), "--tile", str(args.tile)]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        row = json.loads(answer)
        each = 1e6 * row["seconds"] / size**2
        print(
            f"| {size} | {row['seconds']:.2f} | {row['channels']:.2f} | {each:.2f} | {row['above']:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()

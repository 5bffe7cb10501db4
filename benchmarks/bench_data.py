"""How fast are samples read, from disk to ready tensors, in one process?

    python benchmarks/bench_data.py                     # a tree made for the occasion
    python benchmarks/bench_data.py --root RadioMapSeer

Each row reads the same samples: three channels and the map, as float32 in [-1, 1]. The yardstick reads three PNGs a
sample with skimage.io and turns them into tensors with torchvision, as the original RadioDiff's loader does. Rows with
ray channels show what they cost when computed each time, and when a cache keeps them. Readers take turns, several
rounds; the table has each one's best round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PLAIN = ["buildings", "transmitter", "buildings"]
UNCACHED_RAYS = "RadioMapSeer + ray channels"
RAYS = ["buildings", "transmitter", "visibility", "obstruction", "log_distance"]


def original_way(root: Path, samples: list[tuple[int, int]]) -> Callable[[int], object]:
    """Three files a sample through skimage.io, stacked, ToTensor, Normalize."""
    import torch
    from skimage import io
    from torchvision import transforms

    to_tensor = transforms.ToTensor()
    condition_range = transforms.Normalize([0.5] * 3, [0.5] * 3)
    target_range = transforms.Normalize([0.5], [0.5])

    def read(index: int) -> object:
        map_id, tx_id = samples[index]
        buildings = np.asarray(io.imread(root / f"png/buildings_complete/{map_id}.png"))
        transmitter = np.asarray(io.imread(root / f"png/antennas/{map_id}_{tx_id}.png"))
        gain = np.expand_dims(np.asarray(io.imread(root / f"gain/DPM/{map_id}_{tx_id}.png")), 2) / 255
        condition = to_tensor(np.stack([buildings, transmitter, buildings], axis=2)).type(torch.float32)
        return condition_range(condition), target_range(to_tensor(gain).type(torch.float32))

    return read


def our_way(data, channels: list[str]) -> Callable[[int], object]:
    from radiodiff_diffusers.data.collate import collate

    return lambda index: collate([data[index]], channels)


def rate(read: Callable[[int], object], order: np.ndarray) -> float:
    """Samples a second over one pass."""
    start = time.perf_counter()
    for index in order:
        read(int(index))
    return len(order) / (time.perf_counter() - start)


def make_tree(root: Path, maps: int, transmitters: int) -> None:
    from radiodiff_diffusers.data.simulate import simulate

    simulate(root, cities=maps, transmitters=transmitters, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a folder in RadioMapSeer's layout (default: simulated anew)")
    parser.add_argument("--samples", type=int, default=400, help="samples a round (default: 400)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all readers in turn (default: 3)")
    args = parser.parse_args()

    import datasets
    import torch

    from radiodiff_diffusers.data.hub import HubMaps, open_dataset, write_parquet
    from radiodiff_diffusers.data.plane_cache import PlaneCache
    from radiodiff_diffusers.data.radiomapseer import RadioMapSeer

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        datasets.config.HF_DATASETS_CACHE = Path(scratch) / "arrow"
        root = args.root or Path(scratch) / "maps"
        if args.root is None:
            make_tree(root, maps=10, transmitters=40)
        data = RadioMapSeer(root, "all")
        order = np.random.default_rng(0).permutation(len(data))[: args.samples]
        cached = RadioMapSeer(root, "all", cache=PlaneCache(Path(scratch) / "planes", ["visibility", "obstruction"]))
        shards = write_parquet({"train": data}, Path(scratch) / "shards")
        readers = {
            "skimage.io + ToTensor, three files": original_way(root, data.samples),
            "RadioMapSeer, png": our_way(data, PLAIN),
            "RadioMapSeer, polygon": our_way(RadioMapSeer(root, "all", layout="polygon"), PLAIN),
            "Parquet": our_way(open_dataset(shards, "train"), PLAIN),
            UNCACHED_RAYS: our_way(data, RAYS),
            "RadioMapSeer + ray channels, cached": our_way(cached, RAYS),
        }
        assert isinstance(open_dataset(shards, "train"), HubMaps)
        check_equal(readers["skimage.io + ToTensor, three files"], readers["RadioMapSeer, png"], order[:5])
        for (
            read
        ) in readers.values():  # first pass: files into the system's memory, masks into ours, planes into the cache
            rate(read, order)
        best = dict.fromkeys(readers, 0.0)
        for _ in range(args.rounds):
            for name, read in readers.items():
                few = order[:40] if name == UNCACHED_RAYS else order  # it is slow enough to be timed on few
                best[name] = max(best[name], rate(read, few))
    yardstick = next(iter(best.values()))
    print(f"{len(order)} samples of {root}, one process, best of {args.rounds} rounds\n")
    print("| reader | samples/s | times the original's |")
    print("|---|---|---|")
    for name, value in best.items():
        print(f"| {name} | {value:,.0f} | {value / yardstick:.1f} |")


def check_equal(theirs: Callable[[int], object], ours: Callable[[int], object], order: np.ndarray) -> None:
    """A race between readers of different things would say nothing."""
    for index in order:
        (condition, target), batch = theirs(int(index)), ours(int(index))
        if (batch["condition"][0] - condition).abs().max() > 1e-6 or (batch["target"][0] - target).abs().max() > 1e-6:
            raise SystemExit(f"sample {index} reads differently")


if __name__ == "__main__":
    main()

"""How fast are samples read, from disk to ready tensors, in one process?

    python benchmarks/bench_data.py                     # a tree made for the occasion
    python benchmarks/bench_data.py --root RadioMapSeer

Each row reads the same samples: three channels and the map, as float32 in [-1, 1]. The yardstick reads three PNGs a
sample with skimage.io and turns them into tensors with torchvision, as the original RadioDiff's loader does; all make
batches of eight. Rows with ray channels show what they cost when computed each time, and when a cache keeps them.
Readers take turns, several rounds; the table has each one's best round.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 8
Reader = Callable[[list[int]], Any]
PLAIN = ["buildings", "transmitter", "buildings"]
UNCACHED_RAYS = "RadioMapSeer + ray channels"
CACHED_RAYS = "RadioMapSeer + ray channels, cached"
RAYS = ["buildings", "transmitter", "visibility", "obstruction", "log_distance"]


def original_way(root: Path, samples: list[tuple[int, int]]) -> Reader:
    """Three files a sample through skimage.io, stacked, ToTensor, Normalize."""
    import torch
    from skimage import io
    from torch.utils.data import default_collate
    from torchvision import transforms

    to_tensor = transforms.ToTensor()
    condition_range = transforms.Normalize([0.5] * 3, [0.5] * 3)
    target_range = transforms.Normalize([0.5], [0.5])

    def read_one(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        map_id, tx_id = samples[index]
        buildings = np.asarray(io.imread(root / f"png/buildings_complete/{map_id}.png"))
        transmitter = np.asarray(io.imread(root / f"png/antennas/{map_id}_{tx_id}.png"))
        gain = np.expand_dims(np.asarray(io.imread(root / f"gain/DPM/{map_id}_{tx_id}.png")), 2) / 255
        condition = to_tensor(np.stack([buildings, transmitter, buildings], axis=2)).type(torch.float32)
        return condition_range(condition), target_range(to_tensor(gain).type(torch.float32))

    return lambda indices: default_collate([read_one(index) for index in indices])


def our_way(data, channels: list[str]) -> Reader:
    from radiodiff_diffusers.data.collate import collate

    return lambda indices: collate([data[index] for index in indices], channels)


def rate(read: Reader, order: np.ndarray) -> tuple[float, float]:
    """Samples a second by the clock, and by the processor's own time, over one pass."""
    start, worked = time.perf_counter(), time.process_time()
    for first in range(0, len(order), BATCH):
        read(order[first : first + BATCH].tolist())
    return len(order) / (time.perf_counter() - start), len(order) / (time.process_time() - worked)


def make_tree(root: Path, maps: int, transmitters: int) -> None:
    from radiodiff_diffusers.data.simulate import simulate

    simulate(root, cities=maps, transmitters=transmitters, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="a folder in RadioMapSeer's layout (default: simulated anew)")
    parser.add_argument("--samples", type=int, default=400, help="samples a round (default: 400)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all readers in turn (default: 3)")
    parser.add_argument("--plain", action="store_true", help="leave out the rows with ray channels")
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
        cached = RadioMapSeer(root, "all", cache=PlaneCache(Path(scratch) / "planes", RAYS[2:]))
        shards = write_parquet({"train": data}, Path(scratch) / "shards")
        readers = {
            "skimage.io + ToTensor, three files": original_way(root, data.samples),
            "RadioMapSeer, png": our_way(data, PLAIN),
            "RadioMapSeer, polygon": our_way(RadioMapSeer(root, "all", layout="polygon"), PLAIN),
            "Parquet": our_way(open_dataset(shards, "train"), PLAIN),
            UNCACHED_RAYS: our_way(data, RAYS),
            CACHED_RAYS: our_way(cached, RAYS),
        }
        assert isinstance(open_dataset(shards, "train"), HubMaps)
        if args.plain:
            readers = {name: read for name, read in readers.items() if "ray channels" not in name}
        # first pass: files into the system's memory, masks into ours, planes into the cache
        for read in readers.values():
            rate(read, order)
        few = order[:5].tolist()
        for name in ("RadioMapSeer, png", "Parquet"):
            condition, target = readers["skimage.io + ToTensor, three files"](few)
            check_equal(name, readers[name](few), {"condition": condition, "target": target}, 1e-6)
        if not args.plain:
            check_equal(CACHED_RAYS, readers[CACHED_RAYS](few), readers[UNCACHED_RAYS](few), 1e-4)
        best = dict.fromkeys(readers, (0.0, 0.0))
        for _ in range(args.rounds):
            for name, read in readers.items():
                few = order[:40] if name == UNCACHED_RAYS else order  # it is slow enough to be timed on few
                best[name] = tuple(map(max, best[name], rate(read, few)))
    clock, processor = next(iter(best.values()))
    print(f"{len(order)} samples of {root}, one process, best of {args.rounds} rounds\n")
    print("| reader | samples/s | times the original's | the same by processor time |")
    print("|---|---|---|---|")
    for name, (by_clock, by_processor) in best.items():
        print(f"| {name} | {by_clock:,.0f} | {by_clock / clock:.1f} | {by_processor / processor:.1f} |")


def check_equal(name: str, batch: dict, expected: dict, most: float) -> None:
    """A race between readers of different things would say nothing."""
    if any((batch[key] - expected[key]).abs().max() > most for key in ("condition", "target")):
        raise SystemExit(f"{name} reads something else")


if __name__ == "__main__":
    main()

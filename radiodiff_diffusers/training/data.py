"""From a data set's (Scene, RadioMap) pairs to training batches, in an order that the run's seed and a number decide.

Sample number n of a run is a pure function of (seed, n): which pair it is, how it is augmented, which noise it gets.
So a run goes on bit for bit from nothing but a number, and the same global batch is the same whatever the number of
processes.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..channels import write_planes
from ..hub_names import could_be_on_the_hub
from ..scene import RadioMap, Scene
from .augment import apply_symmetry, draw_symmetry, middle_crop, random_crop
from .config import DataConfig
from .derived import EdgePairs, MadeUpRooms, derive

logger = logging.getLogger(__name__)

Pair = tuple[Scene, RadioMap]
Sample = dict[str, Any]


def open_split(config: DataConfig, training: bool = True):
    """The data set a configuration names, for training or for validation."""
    from ..data.hub import is_packed, open_dataset

    split = config.train_split if training else config.validation_split
    options = dict(config.options) | ({} if training else config.validation_options)
    if config.streaming:
        options["streaming"] = True
    if config.source == "made_up_rooms":
        source = MadeUpRooms(split, **options)
    elif EdgePairs.found_in(config.source, split):
        source = EdgePairs(config.source, split, **options)
    else:
        if "/" in config.source and not Path(config.source).exists() and not could_be_on_the_hub(config.source):
            raise ValueError(f"data.source: {config.source}: no such folder, and no name on the Hub (owner/name)")
        if "root" not in options and is_packed(config.source):
            options = _packed_options(config, options)
        source = open_dataset(config.source, split, **options)
    return derive(source, config.derive)


def _packed_options(config: DataConfig, options: dict[str, Any]) -> dict[str, Any]:
    """A recipe's options without those for folders of files: Parquet and Hub data sets are as they were exported."""
    from ..data.hub import file_options

    unused = sorted(set(options) & file_options())
    if not unused:
        return options
    if config.train_split == config.validation_split:
        raise ValueError(
            f"{config.source} is a Parquet or Hub data set, where data.options.{unused[0]} cannot keep training and "
            f"validation apart, and both take the split {config.train_split!r}: set data.train_split and "
            "data.validation_split (train and val)"
        )
    logger.warning(
        "%s is a Parquet or Hub data set: it is as it was exported, data.options.%s of the recipe is not used",
        config.source,
        ", data.options.".join(unused),
    )
    return {name: value for name, value in options.items() if name not in unused}


def make_samples(config: DataConfig, accelerator, seed: int) -> tuple[Samples, Samples]:
    """Training and validation samples; simulates the data first where the configuration asks for it."""
    if config.simulate:
        from ..data.simulate import simulate

        # one process makes them, the others find them there
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                simulate(config.source, **config.simulate)
    training = Samples(open_split(config), config, seed)
    if not config.streaming and len(training):
        # one bad file is for the guard; if none can be used, it is the configuration that is wrong
        first = [training[(i, i)] for i in range(min(3, len(training)))]
        if all("error" in sample for sample in first):
            name, error = first[0]["name"], first[0]["error"]
            raise ValueError(f"none of the first training samples can be used; {name}: {error}")
    return training, Samples(open_split(config, training=False), config, seed, training=False)


def make_planes(scene: Scene, radio_map: RadioMap, names: list[str]) -> np.ndarray:
    """(C, H, W) planes by name: `map`, or channels of the scene."""
    planes = np.empty((len(names), *scene.shape), np.float32)
    for plane, name in zip(planes, names, strict=True):
        if name == "map":
            radio_map.scale.to_unit(radio_map.gain_db, out=plane)
        else:
            write_planes(scene, [name], plane[None])
    return planes


class Samples(Dataset):
    """A data set's pairs as planes, augmented as the configuration says when `training`.

    An item is asked for by (index, number). One that cannot be read comes back with `error` set, so that the run can
    name and skip it.
    """

    def __init__(self, source, config: DataConfig, seed: int = 0, training: bool = True, latents=None):
        self.source, self.config, self.seed, self.training = source, config, seed, training
        self.latents = latents  # a LatentCache, or None

    def __len__(self) -> int:
        size = len(self.source)
        return size if self.config.limit is None else min(size, self.config.limit)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, number = key
        if self.training and hasattr(self.source, "set_epoch"):
            self.source.set_epoch(number // len(self))  # data sets that draw anew in each epoch
        return self.make(index, number, lambda: self.source[index])

    def make(self, index: int, number: int, read) -> Sample:
        sample: Sample = {"index": index, "number": number, "seed": self.seed, "name": f"sample {index}"}
        try:
            scene, radio_map = read()
            sample["name"] = file_name(self.source, index, scene)
            sample |= self._planes(index, number, scene, radio_map)
        except (ValueError, OSError, EOFError) as error:
            sample["error"] = " ".join(str(error).split())
        return sample

    def _planes(self, index: int, number: int, scene: Scene, radio_map: RadioMap) -> Sample:
        config = self.config
        rng = np.random.default_rng([self.seed, number, 1])
        turns, flip = 0, False
        if self.training and (config.symmetries or config.horizontal_flip):
            turns, flip = draw_symmetry(scene.shape, rng, flips_only=not config.symmetries)
            scene, radio_map = apply_symmetry(scene, radio_map, turns, flip)
        if config.crop:
            keep = config.crop_keeps_transmitter, config.transmitter_margin
            if self.training:
                scene, radio_map = random_crop(scene, radio_map, config.crop, rng, *keep)
            else:
                scene, radio_map = middle_crop(scene, radio_map, config.crop, *keep)
        sample: Sample = {"free": (~scene.buildings)[None].astype(np.float32)}
        if config.condition_channels:
            sample["condition"] = make_planes(scene, radio_map, config.condition_channels)
        if self.latents is not None:
            sample["mean"], sample["std"] = self.latents.read(index, turns, flip)
        else:
            sample["image"] = make_planes(scene, radio_map, config.image_channels)
        if not self.training:
            sample["scene"], sample["map"] = scene, radio_map
        return sample


class StreamedSamples(IterableDataset):
    """The same for data that come as a stream, in the stream's order. Resuming reads and drops what was seen."""

    def __init__(self, samples: Samples, sampler: BatchNumbers):
        self.samples, self.sampler = samples, sampler

    def __iter__(self) -> Iterator[list[Sample]]:
        batches = iter(self.sampler)
        wanted = next(batches)
        batch: list[Sample] = []
        for number, pair in enumerate(self._pairs()):
            if number not in wanted:
                continue
            batch.append(self.samples.make(number, number, lambda pair=pair: pair))
            if len(batch) == len(wanted):
                yield batch
                wanted, batch = next(batches), []

    def _pairs(self) -> Iterator[Pair]:
        epoch = 0
        while True:
            if hasattr(self.samples.source, "set_epoch"):
                self.samples.source.set_epoch(epoch)
            empty = True
            for count, pair in enumerate(self.samples.source):
                if self.samples.config.limit is not None and count >= self.samples.config.limit:
                    break
                empty = False
                yield pair
            if empty:
                raise ValueError("the data stream is empty: check data.source and data.train_split")
            epoch += 1


class BatchNumbers:
    """The sample numbers of this process's batches, for ever, from `start` on.

    All processes together take consecutive numbers; each takes its own slice of every global batch.
    """

    def __init__(self, batch_size: int, start: int = 0, rank: int = 0, processes: int = 1):
        self.batch_size, self.start, self.rank, self.processes = batch_size, start, rank, processes

    def __iter__(self) -> Iterator[range]:
        first = self.start + self.rank * self.batch_size
        while True:
            yield range(first, first + self.batch_size)
            first += self.batch_size * self.processes


class ShuffledBatches(Sampler):
    """(index, number) pairs of each batch; every epoch is a permutation that the seed and the epoch decide."""

    def __init__(self, size: int, numbers: BatchNumbers, seed: int):
        self.size, self.numbers, self.seed = size, numbers, seed

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for numbers in self.numbers:
            yield [(self.index(n), n) for n in numbers]

    def index(self, number: int) -> int:
        epoch, position = divmod(number, self.size)
        return int(_permutation(self.size, self.seed, epoch)[position])


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 2]).permutation(size)


def training_batches(
    samples: Samples, batch_size: int, start: int = 0, rank: int = 0, processes: int = 1
) -> Iterator[Sample]:
    """Endless batches from sample number `start` on: dictionaries of stacked tensors, and lists for the rest."""
    numbers = BatchNumbers(batch_size, start, rank, processes)
    common = {
        "worker_init_fn": _start_worker,
        # its own generator, so that starting workers draws nothing from the global one: resuming would shift it
        "generator": torch.Generator().manual_seed(0),
        "pin_memory": torch.cuda.is_available(),
    }
    workers = samples.config.workers
    if samples.config.streaming:
        return iter(DataLoader(StreamedSamples(samples, numbers), batch_size=None, collate_fn=stack_samples,
                               num_workers=min(workers, 1), **common))  # fmt: skip
    if len(samples) == 0:
        raise ValueError("the training split is empty: check data.source, data.train_split and data.options")
    sampler = ShuffledBatches(len(samples), numbers, samples.seed)
    return iter(DataLoader(samples, batch_sampler=sampler, collate_fn=stack_samples, num_workers=workers, **common))


def stack_samples(samples: list[Sample]) -> Sample:
    """Stack arrays to tensors and list the rest; a batch with an unreadable sample holds no tensors, only `errors`."""
    batch: Sample = {key: [s[key] for s in samples] for key in ("index", "number", "seed", "name")}
    batch["errors"] = [f"{s['name']}: {s['error']}" for s in samples if "error" in s]
    if batch["errors"]:
        return batch
    for key in samples[0].keys() - batch.keys():
        values = [s[key] for s in samples]
        if isinstance(values[0], np.ndarray):
            shapes = {v.shape for v in values}
            if len(shapes) > 1:
                sizes = " and ".join(f"{s[-1]} x {s[-2]}" for s in sorted(shapes))
                raise ValueError(
                    f"maps of {sizes} pixels do not fit in one batch: set data.crop, or train.batch_size 1"
                )
            batch[key] = torch.from_numpy(np.stack(values))
        else:
            batch[key] = values
    return batch


def file_name(source, index: int, scene: Scene) -> str:
    """What to call a sample in a report: its file where the data set knows it."""
    files = getattr(source, "files", None)
    if callable(files):
        return str(files(index))
    return scene.name or f"sample {index}"


def generators(batch: Sample, purpose: str) -> list[torch.Generator]:
    """One generator a sample for one purpose, the same whatever the batch around it (see the top of this file)."""
    made = []
    for seed, number in zip(batch["seed"], batch["number"], strict=False):
        sequence = np.random.SeedSequence([seed, number, zlib.crc32(purpose.encode())])
        made.append(torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1)))
    return made


def noise_like(sample: Tensor, batch: Sample, purpose: str) -> Tensor:
    """Standard normal noise of this shape from the samples' own generators."""
    drawn = [torch.randn(sample.shape[1:], generator=g) for g in generators(batch, purpose)]
    return torch.stack(drawn).to(sample.device, sample.dtype)


def _start_worker(_: int) -> None:
    # The main process decides when to stop. A worker that inherited its handlers would outlive the run's SIGTERM.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)

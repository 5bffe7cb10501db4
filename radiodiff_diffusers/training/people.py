"""Images of people by user, and latents of them, as the samples of a training run (see `data.py`, which does maps).

Both are divided in the same way: a share of every user's images, drawn by `data.split_seed`, is for training, the
rest for validation. So what the tokenizer has not seen, the diffusion transformer has not seen either.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..data.hub_users import users_folder
from ..data.latents import LatentDataset
from ..data.micro_doppler import MicroDopplerFolder, find_users, simulate_users, split_indices
from .config import DataConfig, option


@dataclass
class PeopleData(DataConfig):
    """A data section for images by user; the keys of `DataConfig` that belong to maps do nothing here."""

    source: str = option(
        "data/micro_doppler", "a folder for each user inside: user_00 ... or ID_1 ...; or Parquet, or a Hub id"
    )
    image_channels: list[str] = option(["spectrogram"], "what the images are, for the model card")
    size: int = option(256, "images are resized straight to this side, with Lanczos")
    channels: int = option(3, "3 for colour, 1 for gray")
    num_classes: int | None = option(None, "how many users there should be; null: up to the highest number")
    allow_missing: bool = option(False, "users may be missing; the others keep their numbers")
    train_fraction: float = option(0.8, "share of every user's images to train on; the rest validates")
    split_seed: int = option(0, "decides which images those are")
    time_shift: float = option(0.0, "augment by shifts in time of up to this share of the width")


def open_people(config: PeopleData, accelerator) -> tuple[MicroDopplerFolder, MicroDopplerFolder]:
    """The images to train and to validate on; simulates them first where the configuration asks for it."""
    if config.horizontal_flip or config.symmetries or config.crop:
        raise ValueError(
            "data.horizontal_flip, data.symmetries and data.crop would reverse or cut time and velocity: spectrograms "
            "can only have data.time_shift"
        )
    if config.simulate:
        # one process makes them, the others find them there
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                simulate_users(config.source, **config.simulate)
    source = users_folder(config.source)
    folder = MicroDopplerFolder(
        source,
        size=config.size,
        channels=config.channels,
        # named here, a missing user is an error and not a warning
        num_classes=config.num_classes or max(find_users(source)) + 1,
        allow_missing=config.allow_missing,
        augment={"time_shift": config.time_shift} if config.time_shift else None,
        seed=config.split_seed,
    )
    training, validation = (folder.subset(part) for part in _divide(folder.labels, config))
    validation.time_shift = 0.0
    return training, validation


@dataclass
class LatentData(DataConfig):
    """A data section for the latents of images by user."""

    source: str = option("data/latents", "folder made by radiodiff latents extract")
    image_channels: list[str] = option(["spectrogram"], "what the latents are of, for the model card")
    images: str | None = option(None, "the images the latents are of: stops where they have changed since")
    num_classes: int | None = option(None, "how many classes there should be; null: as the latents say")
    allow_missing: bool = option(False, "classes may have no latents")
    train_fraction: float = option(0.8, "share of every class's latents to train on; the rest validates")
    split_seed: int = option(0, "decides which latents those are")
    sample: bool = option(True, "draw from the posterior anew in each epoch; false: the one stored sample")
    normalize: bool = option(True, "bring every channel to mean 0 and deviation 1; undone after sampling")
    multiplier: float = option(1.0, "factor after the normalisation; undone after sampling")
    flip: bool = option(False, "mirrored latents half of the time, where they were extracted: wrong for spectrograms")


def open_latents(config: LatentData, vae, seed: int) -> LatentDataset:
    """The latents, after checking that they are of this tokenizer (and of these images, where they are named)."""
    dataset = LatentDataset(
        config.source,
        tokenizer=vae if (Path(config.source) / "latents.json").exists() else None,  # else: of the original's making
        data=_images_of(config, vae) if config.images else None,
        sample=config.sample,
        normalize=config.normalize,
        multiplier=config.multiplier,
        flip=config.flip,
        num_classes=config.num_classes,
        seed=seed,
    )
    classes = count_classes(config, dataset)
    missing = sorted(set(range(classes)) - set(dataset.labels.tolist()))
    if missing and not config.allow_missing:
        raise ValueError(
            f"{config.source} has no latents of {len(missing)} of {classes} classes, the first is {missing[0]}: "
            "extract them, or set data.allow_missing true"
        )
    channels = dataset[0]["latents"].shape[0]
    if channels != vae.config.latent_channels:
        raise ValueError(
            f"{config.source} has latents of {channels} channels, the tokenizer's have {vae.config.latent_channels}: "
            "they are of another tokenizer"
        )
    return dataset


def count_classes(config: LatentData, dataset: LatentDataset) -> int:
    """As configured, or as the images' folder had them, or up to the highest label."""
    manifest = dataset.manifest or {}
    return config.num_classes or manifest.get("num_classes") or int(dataset.labels.max()) + 1


def _images_of(config: LatentData, vae) -> MicroDopplerFolder:
    from ..data.latents import _read_manifest

    manifest = _read_manifest(Path(config.source)) or {}
    size = manifest.get("size") or vae.config.sample_size
    images = users_folder(config.images)
    # users may be missing here: whether they are those of the latents is asked next, in one line
    users = max(find_users(images)) + 1
    return MicroDopplerFolder(images, size, vae.config.in_channels, num_classes=users, allow_missing=True)


def _divide(labels: np.ndarray, config: PeopleData | LatentData) -> tuple[list[int], list[int]]:
    if not 0 < config.train_fraction <= 1:
        raise ValueError(f"data.train_fraction is {config.train_fraction}: expected more than 0, at most 1")
    return split_indices(labels, config.train_fraction, config.split_seed)


class PeopleSamples(Dataset):
    """Items of a data set of images as samples of a run: `image` and `label`."""

    def __init__(self, source, config: DataConfig, seed: int = 0):
        if len(source) == 0:
            raise ValueError("no images: too few of each user for data.train_fraction")
        self.source, self.config, self.seed = source, config, seed

    def __len__(self) -> int:
        size = len(self.source)
        return size if self.config.limit is None else min(size, self.config.limit)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, number = key
        sample = {"index": index, "number": number, "seed": self.seed, "name": self.name(index)}
        try:
            sample |= self.read(index, number // len(self))
        except (ValueError, OSError) as error:
            sample["error"] = " ".join(str(error).split())
        return sample

    def name(self, index: int) -> str:
        return str(self.source.items[index][0])

    def read(self, index: int, epoch: int) -> dict[str, np.ndarray]:
        self.source.set_epoch(epoch)
        item = self.source[index]
        return {"image": item["image"], "label": np.array(item["label"])}


class LatentSamples(PeopleSamples):
    """A share of the latents of a data set: `latents` and `label`."""

    def __init__(self, source: LatentDataset, config: LatentData, seed: int = 0, training: bool = True):
        training_part, validation_part = _divide(source.labels.numpy(), config)
        self.part = training_part if training else validation_part
        if training and not self.part:
            raise ValueError(f"{config.source} has too few latents for data.train_fraction {config.train_fraction}")
        self.source, self.config, self.seed = source, config, seed

    def __len__(self) -> int:
        return len(self.part) if self.config.limit is None else min(len(self.part), self.config.limit)

    def name(self, index: int) -> str:
        return f"latent {self.part[index]} of {self.source.folder}"

    def read(self, index: int, epoch: int) -> dict[str, np.ndarray]:
        self.source.set_epoch(epoch)
        item = self.source[self.part[index]]
        return {"latents": item["latents"].numpy(), "label": np.array(item["label"])}

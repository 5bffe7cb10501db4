"""Micro-Doppler spectrograms of people: folders of images by user, and simulated users in the same layout.

root/user_00/*.png ... root/user_30/*.png      ids count from 0
root/ID_1/*.jpg ... root/ID_31/*.jpg           ids count from 1, class 0 is ID_1
root/01/Normal_line/*.jpg ...                  ids count from 1, images in folders of walking conditions
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

MIN_SIDE = 8
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")

_REFUSED_AUGMENTATIONS = {
    "horizontal_flip": "it reverses time",
    "time_flip": "it reverses time",
    "vertical_flip": "it turns approaching into walking away",
    "frequency_flip": "it turns approaching into walking away",
    "color_jitter": "a gray value is a measurement",
    "colour_jitter": "a gray value is a measurement",
}


class MicroDopplerFolder:
    """
    A data set of spectrograms by user: `dataset[i]` is a dictionary of `image` (float32, (channels, size, size), in
    [-1, 1]), `label` (the class), `user` (folder name), `condition` (folder below it, or "") and `path`.

    Labels are the numbers in the folder names, in numeric order, and a user keeps the number when others are missing:
    `user_07` is class 7; `ID_7` is class 6. Images are resized straight to the size with Lanczos: a crop would cut
    time or velocity away.

    Args:
        root: The folder.
        size: Side of the images.
        channels: 3 for colour, 1 for gray.
        num_classes: Number of users there should be. A user too many or missing is then an error.
        allow_missing: With `num_classes`, accept missing users.
        augment: `{"time_shift": 0.05}` shifts by up to 5 % of the width, the border column repeated. Nothing else is
            right for a spectrogram, and nothing is done unless asked.
        seed: Decides the augmentation, with the epoch (see `set_epoch`) and the index.
    """

    def __init__(
        self,
        root: str | Path,
        size: int = 256,
        channels: int = 3,
        num_classes: int | None = None,
        allow_missing: bool = False,
        augment: dict[str, float] | None = None,
        seed: int = 0,
    ):
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}: expected 1 (gray) or 3 (colour)")
        self.root, self.size, self.channels, self.seed = Path(root), size, channels, seed
        self.time_shift = _check_augmentation(augment or {})
        self.epoch = 0
        self.users = find_users(self.root)
        self.num_classes = _check_users(self.users, num_classes, allow_missing)
        self.items = []  # (path, label, condition)
        for label, name in self.users.items():
            found = images_of(self.root / name)
            if not found:
                raise ValueError(f"{self.root / name} holds no images ({', '.join(IMAGE_SUFFIXES)})")
            self.items += [(path, label, _condition(path, self.root / name)) for path in found]

    @property
    def labels(self) -> np.ndarray:
        """The class of every image."""
        return np.array([label for _, label, _ in self.items])

    def fingerprint(self) -> str:
        """A hash of every image file, its label and how it is read: other data, another fingerprint."""
        digest = hashlib.blake2b(f"{self.size} {self.channels}".encode(), digest_size=16)
        for path, label, _ in self.items:
            digest.update(f"{path.relative_to(self.root).as_posix()} {label} ".encode())
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
        return digest.hexdigest()

    def set_epoch(self, epoch: int) -> None:
        """Draw other shifts in another epoch."""
        self.epoch = epoch

    def subset(self, indices) -> MicroDopplerFolder:
        """The same data set with some of its images."""
        other = object.__new__(type(self))
        other.__dict__ = self.__dict__ | {"items": [self.items[i] for i in indices]}
        return other

    def split(self, fraction: float = 0.8, seed: int = 0) -> tuple[MicroDopplerFolder, MicroDopplerFolder]:
        """Two parts with the same share of every user's images, drawn by the seed."""
        first, second = split_indices(self.labels, fraction, seed)
        return self.subset(first), self.subset(second)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        path, label, condition = self.items[index]
        image = load_image(path, self.size, self.channels)
        if self.time_shift:
            rng = np.random.default_rng([self.seed, self.epoch, index])
            limit = int(self.time_shift * self.size)
            image = shift_time(image, int(rng.integers(-limit, limit + 1)))
        user = self.users[label]
        return {"image": image, "label": label, "user": user, "condition": condition, "path": str(path)}


def split_indices(labels: np.ndarray, fraction: float = 0.8, seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices of two parts with the same share of every class, drawn by the seed: the same for images and latents."""
    rng, first, second = np.random.default_rng(seed), [], []
    for label in np.unique(labels):
        indices = rng.permutation(np.flatnonzero(labels == label))
        cut = round(fraction * len(indices))
        first += sorted(indices[:cut].tolist())
        second += sorted(indices[cut:].tolist())
    return first, second


def find_users(root: str | Path) -> dict[int, str]:
    """The users' folders by class, in numeric order.

    Folders called `user_...` count from 0, `ID_...` and bare numbers from 1; any other name from 0 if there is a 0,
    else from 1. All folders must be named alike.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder; expected one with a folder of images for each user, like user_00")
    return classes_of(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")), str(root))


def classes_of(folders: list[str], root: str) -> dict[int, str]:
    """Users' folder names by class, as `find_users` does it."""
    parsed = [(name, re.fullmatch(r"(.*?)[ _-]?(\d+)", name)) for name in folders]
    strange = [name for name, match in parsed if match is None]
    if strange or not parsed:
        raise ValueError(
            f"{root} should hold one folder for each user, like user_00 or ID_1; found "
            + (f"{strange[0]!r}" if strange else "no folder")
        )
    prefixes = {match[1].lower() for _, match in parsed}
    if len(prefixes) > 1:
        raise ValueError(f"{root} mixes names of users: {', '.join(sorted(prefixes))}; classes would be ambiguous")
    (prefix,) = prefixes
    numbers = [int(match[2]) for _, match in parsed]
    if prefix == "user":
        first = 0
    elif prefix in ("id", ""):
        first = 1
    else:
        first = 0 if 0 in numbers else 1
    if min(numbers) < first:
        raise ValueError(f"{root}: {prefix or 'bare'} numbers count from {first}, but there is a {min(numbers)}")
    users = {}
    for name, number in sorted(zip(folders, numbers, strict=True), key=lambda pair: pair[1]):
        if number - first in users:
            raise ValueError(f"{root}: {users[number - first]} and {name} are the same user")
        users[number - first] = name
    return users


def images_of(folder: Path) -> list[Path]:
    """All images below a folder, in natural order (2 before 10)."""
    found = [p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return sorted(found, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", str(p))])


def load_image(path: str | Path, size: int = 256, channels: int = 3) -> np.ndarray:
    """An image as the tokenizer sees it: (channels, size, size) float32 in [-1, 1]."""
    try:
        with Image.open(path) as image:
            image = image.convert("RGB" if channels == 3 else "L")
            if image.size != (size, size):
                image = image.resize((size, size), Image.Resampling.LANCZOS)
            pixels = np.asarray(image, dtype=np.float32)
    except (OSError, SyntaxError, ValueError) as error:  # PIL raises all three for broken files
        raise ValueError(f"{path} cannot be read as an image ({str(error).splitlines()[0]})") from None
    pixels = pixels.reshape(size, size, channels).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / 127.5 - 1.0)


def shift_time(image: np.ndarray, columns: int) -> np.ndarray:
    """Move an image right by some columns; the border column fills the gap (nothing else is known there)."""
    source = np.clip(np.arange(image.shape[-1]) - columns, 0, image.shape[-1] - 1)
    return image[..., source]


def simulate_users(
    root: str | Path,
    users: int = 31,
    images_per_user: int = 150,
    conditions: tuple[str, ...] = ("Normal_line",),
    radar: str = "24GHz",
    seed: int = 0,
    size: int = 256,
    colour: bool = True,
    processes: int | None = None,
) -> Path:
    """Write simulated users as `root/user_00/0000.png ...`, with the conditions in turn, and a manifest.

    Images that are there already are kept, so an interrupted run continues; a folder made with other parameters, or
    by others, is refused. Same seed, same pixels.
    """
    from ..engines import gait
    from .radiomapseer_writer import holds_anything

    for name, value, least in (
        ("users", users, 1), ("images_per_user", images_per_user, 1), ("size", size, MIN_SIDE), ("seed", seed, 0),
        ("processes", 1 if processes is None else processes, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} up; got {value!r}")
    if not conditions:
        raise ValueError(f"conditions must be one or more of {', '.join(gait.CONDITIONS)}")
    root = Path(root)
    conditions = tuple(gait._condition(c) for c in conditions)
    gait._radar(radar)
    manifest = {"users": users, "conditions": list(conditions), "radar": radar, "seed": seed, "size": size}
    manifest |= {"images_per_user": images_per_user, "colour": colour, "engine": "gait"}
    _check_manifest(root / "manifest.json", manifest)
    jobs = [
        (root / f"user_{user:02d}" / f"{index:04d}.png", user, index, conditions[index % len(conditions)])
        for user in range(users)
        for index in range(images_per_user)
    ]
    jobs = [(*job, radar, seed, size, colour) for job in jobs if not holds_anything(job[0])]
    for user in range(users):
        (root / f"user_{user:02d}").mkdir(parents=True, exist_ok=True)

    from tqdm import tqdm

    processes = processes or os.cpu_count() or 1
    progress = tqdm(total=len(jobs), desc="simulating users", unit="image", disable=None)
    if processes == 1 or len(jobs) < 32:
        for job in jobs:
            _simulate_one(job)
            progress.update()
    else:
        import multiprocessing

        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for _ in pool.imap_unordered(_simulate_one, jobs, chunksize=8):
                progress.update()
    progress.close()
    return root


def _simulate_one(job) -> None:
    from ..engines import gait

    path, user, index, condition, radar, seed, size, colour = job
    image = gait.spectrogram(user, index, condition, radar, seed, size)
    partial = path.with_suffix(f".{os.getpid()}.part")
    Image.fromarray(image.colour() if colour else image.gray()).save(partial, format="PNG")
    partial.replace(path)  # never a half-written image under its name


def _check_manifest(path: Path, manifest: dict) -> None:
    if path.exists():
        try:
            given = dict(json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise ValueError(f"{path} is damaged: take another folder") from None
        # more images or users of the same population may be added
        different = [k for k in manifest if k not in ("users", "images_per_user") and given.get(k) != manifest[k]]
        if different:
            key = different[0]
            raise ValueError(
                f"{path.parent} was simulated with {key}={given.get(key)!r}, not {manifest[key]!r}: "
                "take another folder"
            )
    elif path.parent.is_dir() and any(path.parent.iterdir()):
        raise ValueError(f"{path.parent} is not empty and holds no simulated users: take another folder")
    from .radiomapseer_writer import write_whole

    write_whole(path, json.dumps(manifest, indent=1).encode())


def _condition(path: Path, folder: Path) -> str:
    parents = path.relative_to(folder).parts[:-1]
    return "/".join(parents)


def _check_users(users: dict[int, str], num_classes: int | None, allow_missing: bool) -> int:
    missing = sorted(set(range(num_classes or max(users) + 1)) - users.keys())
    if num_classes is None:
        if missing:
            logger.warning("no images of class %s: the others keep their numbers", ", ".join(map(str, missing)))
        return max(users) + 1
    if max(users) >= num_classes:
        raise ValueError(f"folder {users[max(users)]} is class {max(users)}, but there are {num_classes} classes")
    if missing and not allow_missing:
        raise ValueError(
            f"{len(missing)} of {num_classes} users have no folder, the first is class {missing[0]} (there is "
            f"{next(iter(users.values()))} and so on): add them, or allow missing users (--allow-missing, of a "
            "recipe --allow_missing true)"
        )
    return num_classes


def _check_augmentation(augment: dict[str, float]) -> float:
    for name in augment:
        if name in _REFUSED_AUGMENTATIONS:
            raise ValueError(f"augmentation {name!r} is wrong for spectrograms: {_REFUSED_AUGMENTATIONS[name]}")
        if name != "time_shift":
            raise ValueError(f"unknown augmentation {name!r}: spectrograms can only have a time_shift")
    shift = float(augment.get("time_shift", 0.0))
    if not 0 <= shift <= 0.25:
        raise ValueError(f"time_shift is {shift}: expected a fraction of the width, 0 to 0.25")
    return shift

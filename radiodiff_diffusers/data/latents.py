"""Latents of a data set, computed once: extraction to shards, and the data set that training reads.

A folder of latents holds

    latents_rank00_shard000.safetensors ...   `latents` (a sample of the posterior), `labels`, `mean`, `std` (of the
                                              posterior), with `flip` also `latents_flip`, `mean_flip`, `std_flip`
    latents.json                              fingerprints of tokenizer, data and labels, users, statistics; written
                                              last
    latents_stats.pt                          the statistics once more, as the original LightningDiT reads them

The first two tensors are what the original's training reads; the posterior's moments let ours sample anew each epoch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

logger = logging.getLogger(__name__)

MANIFEST = "latents.json"
_STATISTICS_DO_NOT_COUNT = ("latents_mean", "latents_std")


def tokenizer_fingerprint(vae) -> str:
    """A hash of a tokenizer's weights and architecture; where its latent statistics are stored does not matter."""
    digest = hashlib.blake2b(digest_size=16)
    config = {k: v for k, v in vae.config.items() if not k.startswith("_") and k not in _STATISTICS_DO_NOT_COUNT}
    digest.update(json.dumps(config, sort_keys=True, default=list).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        # fp32, so that a half-precision copy in memory is told from the tokenizer it was made of by its values only
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def labels_fingerprint(labels) -> str:
    """A hash of the labels in their order."""
    numbers = torch.as_tensor(labels, dtype=torch.int64).flatten().contiguous().numpy()
    return hashlib.blake2b(numbers.astype("<i8").tobytes(), digest_size=16).hexdigest()


def extract_latents(
    vae,
    dataset,
    folder: str | Path,
    batch_size: int = 8,
    shard_size: int = 1024,
    flip: bool = False,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    workers: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Encode a data set to a folder of shards.

    Args:
        vae: The tokenizer, an `AutoencoderKL`.
        dataset: Items with `image` ((channels, height, width) in [-1, 1]) and `label`, all `labels` in order, and a
            method `fingerprint()`, such as [`MicroDopplerFolder`] without augmentation.
        folder: Where the shards go. Finished shards of the same tokenizer and data are kept, so that an interrupted
            extraction goes on; any others stop it, unless `overwrite`.
        flip: Also encode mirrored images. Mirroring turns time round in a spectrogram: leave it off there.
        seed: Decides the samples, with the index of the image: not the batch, the shard or the number of processes.
        dtype: `torch.bfloat16` to run the encoder under autocast; the shards are fp32 all the same.
        rank, world_size: This process and how many share the work; taken from the environment that torchrun and
            accelerate set when left out. The processes need no connection: the last to finish writes the manifest.
    """
    if getattr(dataset, "time_shift", 0):
        raise ValueError("latents are extracted from images as they are: leave the augmentation out")
    _check_size(dataset[0]["image"].shape, vae)
    for name, number in (("batch_size", batch_size), ("shard_size", shard_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}: expected at least 1")
    rank = int(os.environ.get("RANK", 0)) if rank is None else rank
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    origin = {
        "tokenizer": tokenizer_fingerprint(vae),
        "data": dataset.fingerprint(),
        "flip": str(flip),
        "seed": str(seed),
        "shard_size": str(shard_size),
        "dtype": str(dtype),
    }
    shards = [range(i, min(i + shard_size, len(dataset))) for i in range(0, len(dataset), shard_size)]
    labels = [int(label) for label in dataset.labels]
    expected = [labels[shard.start : shard.stop] for shard in shards]
    paths = [folder / f"latents_rank00_shard{k:03d}.safetensors" for k in range(len(shards))]
    mine = range(rank, len(shards), world_size)
    if overwrite:  # every process removes its own, so that none takes away what another has just made
        others = set(folder.glob("latents_rank*_shard*.safetensors")) - set(paths) if rank == 0 else set()
        for old in [paths[k] for k in mine] + sorted(others):
            if not _is_current(old, origin):
                old.unlink(missing_ok=True)
    todo = [k for k in mine if not _is_finished(paths[k], origin, expected[k])]
    vae = vae.to(device).eval()
    from tqdm import tqdm

    with tqdm(total=sum(len(shards[k]) for k in todo), desc="latents", unit="image", disable=rank != 0) as progress:
        for k in todo:
            tensors = _encode_shard(vae, dataset, shards[k], batch_size, flip, seed, device, dtype, workers, progress)
            partial = paths[k].with_suffix(f".{os.getpid()}.part")
            save_file(tensors, partial, metadata=origin | {"total_size": str(len(shards[k]))})
            partial.chmod(0o644)
            partial.replace(paths[k])

    if all(_is_current(path, origin) for path in paths):
        _write_manifest(folder, paths, shards, origin, vae, dataset, labels)
    return folder


def _check_size(shape, vae) -> None:
    """A tokenizer drops what is left over of an image that it cannot halve often enough."""
    step = 2 ** (len(vae.config.block_out_channels) - 1)
    channels, height, width = shape
    if channels != vae.config.in_channels or height % step or width % step:
        raise ValueError(
            f"the images are {channels} x {height} x {width}: the tokenizer expects {vae.config.in_channels} channels "
            f"and multiples of {step}"
        )


@torch.no_grad()
def _encode_shard(vae, dataset, indices, batch_size, flip, seed, device, dtype, workers, progress) -> dict:
    from torch.utils.data import DataLoader, Subset

    parts: dict[str, list] = {}
    loader = DataLoader(Subset(dataset, indices), batch_size=batch_size, num_workers=workers)
    done = 0
    for batch in loader:
        images = torch.as_tensor(batch["image"]).to(device, vae.dtype)
        batch_indices = indices[done : done + len(images)]
        for suffix, views in (("", images), ("_flip", images.flip(-1) if flip else None)):
            if views is None:
                continue
            with torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
                posterior = vae.encode(views).latent_dist
            mean, std = posterior.mean.float().cpu(), posterior.std.float().cpu()
            if not (mean.isfinite().all() and std.isfinite().all()):
                raise ValueError(
                    f"the tokenizer gives no finite latents for image {batch_indices[0]} or the next {len(images) - 1}"
                    f" (computed in {dtype}, weights in {vae.dtype}): use fp32 or bf16"
                )
            noise = torch.stack([posterior_noise(mean.shape[1:], seed, i, bool(suffix)) for i in batch_indices])
            for name, tensor in (("latents", mean + std * noise), ("mean", mean), ("std", std)):
                parts.setdefault(name + suffix, []).append(tensor)
        parts.setdefault("labels", []).append(torch.as_tensor(batch["label"], dtype=torch.int64))
        done += len(images)
        progress.update(len(images))
    return {name: torch.cat(tensors).contiguous() for name, tensors in parts.items()}


def posterior_noise(shape, seed: int, index: int, other: bool | int = 0) -> torch.Tensor:
    """Standard normal noise decided by a seed, the number of the image, and one number more (the epoch, the view)."""
    mixed = int.from_bytes(hashlib.blake2b(f"{seed} {index} {int(other)}".encode(), digest_size=8).digest(), "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed >> 1))


def _is_current(path: Path, origin: dict) -> bool:
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as shard:
            return {k: v for k, v in (shard.metadata() or {}).items() if k in origin} == origin
    except SafetensorError:
        return False


def _is_finished(path: Path, origin: dict, expected_labels: list[int]) -> bool:
    if not path.exists():
        return False
    try:
        with safe_open(path, framework="pt") as shard:
            given = shard.metadata() or {}
            labels = shard.get_tensor("labels").tolist() if "labels" in shard.keys() else None
    except SafetensorError:
        logger.warning("%s is damaged (a full disk, a broken copy?): made again", path)
        return False
    for key, what in (("tokenizer", "another tokenizer"), ("data", "other images"), ("flip", "another flip setting")):
        if given.get(key) != origin[key]:
            raise ValueError(f"{path} is of {what}: take another folder, or overwrite (--overwrite)")
    if given != origin | {"total_size": given.get("total_size")}:
        raise ValueError(f"{path} has another seed, shard size or precision: take another folder, or --overwrite")
    if labels != expected_labels:
        logger.warning("%s has labels that are not those of its images: made again", path)
        return False
    return True


def _write_manifest(folder, paths, shards, origin, vae, dataset, labels) -> None:
    mean, std, count, shape = channel_statistics(paths)
    users = getattr(dataset, "users", {})
    manifest = {
        "format": 2,
        **origin,
        "labels": labels_fingerprint(labels),
        "images": len(dataset),
        "latent_shape": shape,
        "size": getattr(dataset, "size", None),
        "channels": vae.config.in_channels,
        "num_classes": getattr(dataset, "num_classes", None),
        "users": {str(label): name for label, name in users.items()},
        "shards": {path.name: len(shard) for path, shard in zip(paths, shards, strict=True)},
        "statistics": {"mean": mean.tolist(), "std": std.tolist(), "values_per_channel": count},
    }
    partial = folder / f"latents_stats.{os.getpid()}.part"
    torch.save({"mean": mean.float().view(1, -1, 1, 1), "std": std.float().view(1, -1, 1, 1)}, partial)
    partial.replace(folder / "latents_stats.pt")
    partial = folder / f"{MANIFEST}.{os.getpid()}.part"
    partial.write_text(json.dumps(manifest, indent=1))
    partial.replace(folder / MANIFEST)


def channel_statistics(paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor, int, list[int]]:
    """Mean and unbiased standard deviation of each channel over all `latents` of some shards, exactly, in fp64.

    Returns mean, std, the number of values a channel has, and the shape of one latent.
    """
    count, total, squares, shape = 0, 0.0, 0.0, None
    for path in paths:
        with _open(path) as shard:
            latents = shard.get_tensor("latents").double()
        shape = list(latents.shape[1:])
        values = latents.transpose(0, 1).flatten(1)
        # merge sums of squared deviations (Chan et al.): no cancellation, however large the mean
        n, mean = values.shape[1], values.mean(1)
        deviation = ((values - mean[:, None]) ** 2).sum(1)
        if count:
            delta = mean - total / count
            squares = squares + deviation + delta**2 * count * n / (count + n)
        else:
            squares = deviation
        count, total = count + n, total + mean * n
    return total / count, (squares / (count - 1)).sqrt(), count, shape


def _open(path: Path):
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read ({str(error).splitlines()[0][:100]}): delete it and extract again, finished "
            "shards are kept"
        ) from None


# What every shard's header says of where it comes from, and the manifest, too.
ORIGIN = ("tokenizer", "data", "flip", "seed", "shard_size", "dtype")


class LatentDataset(torch.utils.data.Dataset):
    """
    Latents for training: `dataset[i]` is a dictionary of `latents` (normalised by channel) and `label`.

    Args:
        folder: A folder written by [`extract_latents`], or by the original's extraction (whose latents are fixed
            samples, and which has no fingerprints to check).
        tokenizer: The tokenizer the latents must be of; others are refused.
        data: The data set the latents must be of (it has `fingerprint()` and `labels`); others are refused.
        sample: Draw from the posterior anew each epoch (see `set_epoch`); else its one stored sample.
        normalize: Subtract the channel means and divide by the standard deviations.
        multiplier: Factor after the normalisation.
        flip: Take the mirrored latents half of the time, where they were extracted. Wrong for spectrograms.
        in_memory: Keep all in memory; by default when it is less than 2 GiB.
        num_classes: Refuse labels beyond.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer=None,
        data=None,
        sample: bool = True,
        normalize: bool = True,
        multiplier: float = 1.0,
        flip: bool = False,
        in_memory: bool | None = None,
        num_classes: int | None = None,
        seed: int = 0,
    ):
        self.folder, self.seed, self.epoch = Path(folder), seed, 0
        self.sample, self.flip, self.multiplier = sample, flip, multiplier
        self.manifest = _read_manifest(self.folder)
        _check_origin(self.manifest, self.folder, tokenizer, data)
        self._shards = self._index()
        self.labels = torch.cat([labels for _, labels, _ in self._shards])
        if data is not None and self.labels.tolist() != [int(label) for label in data.labels]:
            raise ValueError(f"the labels in {self.folder} are not those of the data, in its order: extract again")
        self._check_labels()
        if num_classes is not None and self.labels.max() >= num_classes:
            raise ValueError(
                f"{self.folder} has the class {int(self.labels.max())}, but there are {num_classes} classes"
            )
        self.mean, self.std = self._statistics() if normalize else (None, None)
        self._starts = [0]
        for _, labels, _ in self._shards:
            self._starts.append(self._starts[-1] + len(labels))
        with _open(self._shards[0][0]) as shard:
            self._names = set(shard.keys())
        if flip and "latents_flip" not in self._names:
            raise ValueError(f"{self.folder} has no mirrored latents: extract with flip, or leave flip off")
        self._open_shards: dict[int, object] = {}
        self._tensors = None
        size = sum(path.stat().st_size for path, _, _ in self._shards)
        if in_memory or (in_memory is None and size < 2 * 1024**3):
            self._tensors = self._load_all()

    def _index(self):
        shards = []
        for path in sorted(self.folder.glob("*.safetensors")):
            with _open(path) as shard:
                if not {"latents", "labels"} <= set(shard.keys()):
                    raise ValueError(f"{path} is no shard of latents: it holds {', '.join(shard.keys())}")
                labels = shard.get_tensor("labels").long()
                shape = shard.get_slice("latents").get_shape()
                origin = shard.metadata() or {}
            for key in ORIGIN if path.name in (self.manifest or {}).get("shards", ()) else ():
                if origin.get(key) != self.manifest.get(key):
                    raise ValueError(f"{path} is not of this set: its {key} is another; remove it and extract again")
            if shape[0] != len(labels):
                raise ValueError(f"{path} has {shape[0]} latents and {len(labels)} labels: extract it again")
            shards.append((path, labels, shape[1:]))
        if not shards:
            raise ValueError(f"{self.folder} holds no shards of latents: make them with radiodiff latents extract")
        if self.manifest is not None:
            found = {path.name: len(labels) for path, labels, _ in shards}
            for name, count in self.manifest["shards"].items():
                if found.get(name) != count:
                    raise ValueError(
                        f"{self.folder / name} has {found.get(name, 'no')} latents, expected {count}: extract again, "
                        "finished shards are kept"
                    )
            extra = found.keys() - self.manifest["shards"].keys()
            if extra:
                raise ValueError(f"{self.folder / min(extra)} does not belong to the other shards: remove it")
        return shards

    def _check_labels(self) -> None:
        if self.manifest is None:
            return
        if "labels" not in self.manifest:
            logger.warning(
                "%s is of an older version and does not say which labels the latents have, so they are not checked: "
                "run the extraction again to add that, finished shards are kept",
                self.folder / MANIFEST,
            )
        elif labels_fingerprint(self.labels) != self.manifest["labels"]:
            raise ValueError(
                f"the labels in {self.folder} are not those that were extracted (changed, or in another order): "
                "extract again, shards with the right labels are kept"
            )

    def _statistics(self):
        if self.manifest is not None:
            statistics = self.manifest["statistics"]
        elif (self.folder / "latents_stats.pt").is_file():
            statistics = torch.load(self.folder / "latents_stats.pt", weights_only=True)
        else:
            raise ValueError(
                f"{self.folder} has no statistics ({MANIFEST} or latents_stats.pt): the extraction did not finish, "
                "run it again"
            )
        return tuple(torch.as_tensor(statistics[k]).float().view(-1, 1, 1) for k in ("mean", "std"))

    def _load_all(self) -> dict[str, torch.Tensor]:
        wanted = ["latents"] if not (self.sample and "std" in self._names) else ["mean", "std"]
        wanted += [name + "_flip" for name in wanted] if self.flip else []
        tensors = {name: [] for name in wanted}
        for path, _, _ in self._shards:
            with _open(path) as shard:
                for name in wanted:
                    tensors[name].append(shard.get_tensor(name))
        return {name: torch.cat(parts) for name, parts in tensors.items()}

    def set_epoch(self, epoch: int) -> None:
        """Draw other samples (and other mirrorings) in another epoch."""
        self.epoch = epoch

    @property
    def users(self) -> dict[int, str]:
        """The users' names by class, as in the data the latents are of."""
        return {int(label): name for label, name in (self.manifest or {}).get("users", {}).items()}

    def __len__(self) -> int:
        return self._starts[-1]

    def _get(self, name: str, index: int) -> torch.Tensor:
        if self._tensors is not None:
            return self._tensors[name][index]
        import bisect

        number = bisect.bisect_right(self._starts, index) - 1
        if number not in self._open_shards:
            self._open_shards[number] = _open(self._shards[number][0])
        return self._open_shards[number].get_slice(name)[index - self._starts[number]]

    def __getitem__(self, index: int) -> dict:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        suffix = "_flip" if self.flip and posterior_noise((), self.seed + 1, index, self.epoch) > 0 else ""
        if self.sample and "std" in self._names:
            mean, std = self._get("mean" + suffix, index), self._get("std" + suffix, index)
            latents = mean.float() + std.float() * posterior_noise(mean.shape, self.seed, index, self.epoch)
        else:
            latents = self._get("latents" + suffix, index).float()
        if self.mean is not None:
            latents = (latents - self.mean) / self.std
        return {"latents": latents * self.multiplier, "label": int(self.labels[index])}

    def __getstate__(self):
        return self.__dict__ | {"_open_shards": {}}  # open files do not travel to worker processes


def _read_manifest(folder: Path) -> dict | None:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of latents")
    path = folder / MANIFEST
    if not path.exists():
        for shard in folder.glob("latents_rank00_shard*.safetensors"):
            with _open(shard) as opened:
                if "tokenizer" in (opened.metadata() or {}):  # ours, not the original's
                    raise ValueError(f"{folder} is not finished ({MANIFEST} is missing): run the extraction again")
        return None
    try:
        manifest = json.loads(path.read_text())
        complete = {"tokenizer", "data", "shards", "statistics", "users"} <= manifest.keys()
        complete &= all(isinstance(manifest[k], dict) for k in ("shards", "statistics", "users"))
        complete &= complete and {"mean", "std"} <= manifest["statistics"].keys()
    except (ValueError, AttributeError):
        complete = False
    if not complete:
        raise ValueError(f"{path} is damaged: run the extraction again, finished shards are kept")
    if not all(math.isfinite(v) for v in manifest["statistics"]["mean"] + manifest["statistics"]["std"]):
        raise ValueError(f"{path} has statistics that are not finite: the latents are unusable")
    return manifest


def _check_origin(manifest: dict | None, folder: Path, tokenizer, data) -> None:
    if manifest is None:
        if tokenizer is not None or data is not None:
            raise ValueError(
                f"{folder} has no fingerprints ({MANIFEST}), so nobody knows which tokenizer and data it is of: "
                "extract again, or read it without naming them"
            )
        return
    if tokenizer is not None and tokenizer_fingerprint(tokenizer) != manifest["tokenizer"]:
        raise ValueError(f"{folder} was made with another tokenizer: extract again with this one, to another folder")
    if data is not None:
        users = {str(label): name for label, name in getattr(data, "users", {}).items()}
        for label in sorted(users.keys() | manifest["users"].keys(), key=int):
            ours, theirs = users.get(label), manifest["users"].get(label)
            if ours != theirs:
                raise ValueError(
                    f"class {label} is {ours or 'nobody'} in the data and {theirs or 'nobody'} in {folder}: "
                    "the latents are of another set of users; extract again"
                )
        if data.fingerprint() != manifest["data"]:
            raise ValueError(f"the images have changed since {folder} was made: extract again")

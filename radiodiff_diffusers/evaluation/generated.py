"""Generated spectrograms against real ones: whose they are taken for, how the people move, variety, copies.

A small classifier of users is trained on real images and asked about images it has not seen, real and generated. The
walk is read off each image: the ridge's velocity (the body) and the cadence (steps a second). Distances tell whether
the images of a user differ from one another as real ones do, and whether they repeat images that were trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..data.micro_doppler import MicroDopplerFolder, split_indices
from ..engines.gait import jet_backwards

logger = logging.getLogger(__name__)

SIDE = 64  # images are compared and classified at this size
MIN_SIZE = 16  # below it a spectrogram has no room for body and feet


# Reading a spectrogram ---------------------------------------------------------------------------------------------


def power_of(image: np.ndarray) -> np.ndarray:
    """(H, W) power in 0..1 on the image's own dB scale, from a gray or jet-coloured image in [-1, 1]."""
    pixels = np.clip(np.round((np.asarray(image, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)
    if len(pixels) == 1:
        return pixels[0] / np.float32(255)
    if np.ptp(pixels.astype(int), axis=0).max() <= 2:  # three equal channels
        return pixels.mean(0).astype(np.float32) / 255
    red, green, blue = pixels >> 2
    return jet_backwards()[0][red, green, blue] / np.float32(255)


def ridge_velocity(power: np.ndarray, velocity_range: tuple[float, float], least: float = 0.4) -> float:
    """Velocity of the body in m/s: the strongest line of each column away from the clutter at 0, its median."""
    velocities = np.linspace(velocity_range[1], velocity_range[0], len(power))
    moving = np.abs(velocities) >= least
    return float(np.median(velocities[moving][power[moving].argmax(axis=0)]))


def cadence(power: np.ndarray, velocity_range: tuple[float, float], duration: float) -> float:
    """Steps a second: how often what is faster than the body (the swinging feet) returns; NaN where nothing does."""
    velocities = np.linspace(velocity_range[1], velocity_range[0], len(power))
    body = ridge_velocity(power, velocity_range)
    fast = velocities > 1.6 * body if body > 0 else velocities < 1.6 * body
    if not fast.any():
        return float("nan")
    swing = power[fast].mean(axis=0)
    swing = swing - swing.mean()
    count, seconds = len(swing), duration / len(swing)
    padded = np.abs(np.fft.rfft(swing, 2 * count)) ** 2
    # each lag has fewer pairs than the one before
    likeness = np.fft.irfft(padded)[: count // 2] / np.arange(count, count - count // 2, -1)
    first, last = int(0.35 / seconds), min(int(0.9 / seconds) + 1, len(likeness) - 1)
    peaks = [i for i in range(max(first, 1), last) if likeness[i - 1] < likeness[i] >= likeness[i + 1]]
    if not peaks or likeness[0] <= 0:
        return float("nan")
    best = max(peaks, key=lambda i: likeness[i])
    left, middle, right = likeness[best - 1 : best + 2]
    bend = left - 2 * middle + right
    return float(1 / ((best + (0.5 * (left - right) / bend if bend else 0.0)) * seconds))


# Whose is it -------------------------------------------------------------------------------------------------------


class UserClassifier(nn.Module):
    """A small convolutional network on 64 x 64 images of power."""

    def __init__(self, num_classes: int, width: int = 24):
        super().__init__()
        layers: list[nn.Module] = []
        widths = [1, width, 2 * width, 4 * width]
        for level, (before, after) in enumerate(zip(widths, widths[1:], strict=False)):
            # a stride in the first layer: at full size it would cost more than all the others
            shape = {"kernel_size": 5, "padding": 2, "stride": 2} if level == 0 else {"kernel_size": 3, "padding": 1}
            layers += [nn.Conv2d(before, after, bias=False, **shape), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if level else []
        self.features = nn.Sequential(*layers)
        # the height (velocity) stays, the width (time) is averaged: who it is does not depend on when
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(4 * width * (SIDE // 8), num_classes))

    def forward(self, power: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(power - 0.5).mean(dim=3).flatten(1))


def train_classifier(
    power: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    steps: int = 800,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> UserClassifier:
    """Learn whose image it is from (N, 64, 64) power; small random shifts in time are the only augmentation."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UserClassifier(num_classes).train()
        images, targets = torch.from_numpy(power).float()[:, None], torch.from_numpy(np.asarray(labels)).long()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in _bar(range(steps), "training a classifier", "step", progress):
            chosen = torch.randint(len(images), (min(batch_size, len(images)),), generator=draw)
            shift = int(torch.randint(-6, 7, (1,), generator=draw))
            columns = (torch.arange(SIDE) - shift).clamp(0, SIDE - 1)
            loss = F.cross_entropy(model(images[chosen][..., columns]), targets[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: UserClassifier, power: np.ndarray, labels: np.ndarray) -> float:
    images = torch.from_numpy(power).float()[:, None]
    guesses = torch.cat([model(part).argmax(1) for part in images.split(256)])
    return float((guesses.numpy() == labels).mean())


# The whole ---------------------------------------------------------------------------------------------------------


def read_all(
    folder: MicroDopplerFolder, velocity_range: tuple[float, float], duration: float, progress: bool = False
) -> dict[str, Any]:
    """Labels, (N, 64, 64) power, ridge velocity and cadence of every image."""
    powers, ridges, cadences = [], [], []
    for i in _bar(range(len(folder)), f"reading {folder.root.name}", "image", progress):
        power = power_of(folder[i]["image"])
        ridges.append(ridge_velocity(power, velocity_range))
        cadences.append(cadence(power, velocity_range, duration))
        powers.append(F.interpolate(torch.from_numpy(power)[None, None], (SIDE, SIDE), mode="area")[0, 0].numpy())
    return {
        "labels": folder.labels, "power": np.stack(powers),
        "ridge": np.array(ridges), "cadence": np.array(cadences),
    }  # fmt: skip


def evaluate_generated(
    generated: MicroDopplerFolder,
    real: MicroDopplerFolder,
    train_fraction: float = 0.8,
    split_seed: int = 0,
    velocity_range: tuple[float, float] = (-2.0, 6.2),
    duration: float = 2.4,
    add_to: int | None = None,
    steps: int = 800,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """Compare generated with real images of the same users.

    Args:
        generated, real: Folders by user; a user has the same number in both.
        train_fraction, split_seed: As the generator was trained with: the rest of the real images it has not seen.
        velocity_range, duration: Of the images, in m/s (bottom, top) and seconds.
        add_to: Also train a classifier on so many real images of each user, alone and with the generated ones added.
        steps: Of training each classifier.
        progress: Show bars on standard error.

    Returns:
        Accuracies (`held_out_accuracy` of real, `accuracy` of generated, `chance`), the walk (`ridge_error`,
        `cadence_error`: difference of the users' means, beside that of held-out real ones; `*_correlation` over
        users), `diversity` (1: as different as real images of one user), `nearest` (distance to the nearest training
        image, over that of held-out real ones) and `copies` (share nearer than 99 % of the held-out ones are).
    """
    strangers = sorted(set(generated.labels.tolist()) - set(real.labels.tolist()))
    if strangers:
        raise ValueError(
            f"generated images of {generated.users[strangers[0]]}, of whom there is no real one: users must have the "
            "same numbers in both folders"
        )
    if min(generated.size, real.size) < MIN_SIZE:
        raise ValueError(f"images of {min(generated.size, real.size)} pixels show no walk: give {MIN_SIZE} or more")
    first, second = split_indices(real.labels, train_fraction, split_seed)
    if not first or not second:
        raise ValueError(f"{len(real)} real images are too few to hold some out with train_fraction {train_fraction}")
    sets = {
        name: read_all(folder, velocity_range, duration, progress)
        for name, folder in (("train", real.subset(first)), ("held_out", real.subset(second)), ("made", generated))
    }
    train, held_out, made = sets["train"], sets["held_out"], sets["made"]
    classes = int(real.labels.max()) + 1
    training: dict[str, Any] = {"steps": steps, "seed": seed, "progress": progress}
    model = train_classifier(train["power"], train["labels"], classes, **training)
    scores: dict[str, Any] = {
        "images": len(generated),
        "users": len(set(generated.labels.tolist())),
        "chance": 1 / len(set(real.labels.tolist())),
        "held_out_accuracy": accuracy(model, held_out["power"], held_out["labels"]),
        "accuracy": accuracy(model, made["power"], made["labels"]),
    }
    for name in ("ridge", "cadence"):
        scores |= _compare_walk(name, train, held_out, made)
    scores["diversity"] = _spread(made) / _spread(train)
    near, usual = _nearest(made["power"], train["power"]), _nearest(held_out["power"], train["power"])
    scores["nearest"] = float(np.median(near) / np.median(usual))
    scores["copies"] = float((near < np.quantile(usual, 0.01)).mean())
    if add_to:
        scores |= _gain(train, held_out, made, classes, add_to, training)
    return scores


def _compare_walk(name: str, train: dict, held_out: dict, made: dict) -> dict[str, float]:
    """How far the users' means lie from those of the real training images; of real images that is the sampling."""
    means = [_means(one[name], one["labels"]) for one in (train, held_out, made)]
    users = sorted(set(means[0]) & set(means[1]) & set(means[2]))
    if not users:
        return {f"{name}_error": float("nan"), f"{name}_error_of_real": float("nan")}
    real, other, ours = (np.array([mean[u] for u in users]) for mean in means)
    scores = {
        f"{name}_error": float(np.abs(ours - real).mean()),
        f"{name}_error_of_real": float(np.abs(other - real).mean()),
    }
    if len(users) > 2 and real.std() > 0 and ours.std() > 0:
        scores[f"{name}_correlation"] = float(np.corrcoef(real, ours)[0, 1])
    return scores


def _means(values: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    found = {int(u): values[labels == u] for u in np.unique(labels)}
    return {u: float(np.nanmean(v)) for u, v in found.items() if np.isfinite(v).any()}


def _spread(one: dict) -> float:
    """Mean distance between two images of one user."""
    distances = []
    for user in np.unique(one["labels"]):
        images = one["power"][one["labels"] == user].reshape((one["labels"] == user).sum(), -1)
        if len(images) > 1:
            squares = _squared_distances(images, images)
            distances.append(np.sqrt(squares[np.triu_indices(len(images), 1)]).mean())
    return float(np.mean(distances)) if distances else float("nan")


def _nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    images, others = images.reshape(len(images), -1), others.reshape(len(others), -1)
    return np.concatenate([np.sqrt(_squared_distances(images[i : i + 256], others)).min(1)
                           for i in range(0, len(images), 256)])  # fmt: skip


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (np.square(a).sum(1)[:, None] + np.square(b).sum(1)[None] - 2 * a @ b.T).clip(min=0)


def _gain(train, held_out, made, classes, per_user, training) -> dict[str, float]:
    """A classifier from few real images of each user, without and with the generated ones."""
    few = np.concatenate([np.flatnonzero(train["labels"] == u)[:per_user] for u in np.unique(train["labels"])])
    power, labels = train["power"][few], train["labels"][few]
    alone = train_classifier(power, labels, classes, **training)
    both = train_classifier(
        np.concatenate([power, made["power"]]), np.concatenate([labels, made["labels"]]), classes, **training
    )
    return {
        "few_real": per_user,
        "accuracy_from_few": accuracy(alone, held_out["power"], held_out["labels"]),
        "accuracy_from_few_and_generated": accuracy(both, held_out["power"], held_out["labels"]),
    }


def _bar(items: Iterable, what: str, unit: str, progress: bool) -> Iterable:
    from tqdm import tqdm

    return tqdm(items, desc=what, unit=unit, disable=not progress)  # on standard error


def describe(scores: dict[str, Any]) -> str:
    """The scores as text."""
    s = scores
    lines = [
        f"{s['images']} generated images of {s['users']} users",
        f"taken for the right user   {s['accuracy']:.1%} (held-out real images {s['held_out_accuracy']:.1%}, chance "
        f"{s['chance']:.1%})",
    ]
    for name, unit in (("ridge", "m/s"), ("cadence", "steps/s")):
        correlation = f", correlation over users {s[f'{name}_correlation']:.2f}" if f"{name}_correlation" in s else ""
        lines.append(
            f"{name + ' of a user':27}off by {s[f'{name}_error']:.3f} {unit} (real images "
            f"{s[f'{name}_error_of_real']:.3f}){correlation}"
        )
    lines.append(f"variety within a user      {s['diversity']:.2f} (1: as among real images)")
    lines.append(f"nearest training image     {s['nearest']:.2f} of a real image's distance")
    lines.append(f"copies                     {s['copies']:.1%} (of real images 1 %)")
    if "few_real" in s:
        lines.append(
            f"a classifier from {s['few_real']} real images a user: {s['accuracy_from_few']:.1%}; with the generated "
            f"ones added {s['accuracy_from_few_and_generated']:.1%}"
        )
    return "\n".join(lines)


# On the command line -----------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    parser.add_argument("images", help="folder of generated images, with a folder for each user: user_00 ...")
    parser.add_argument("--real", required=True, help="folder of real images of the same users")
    parser.add_argument("--train-fraction", type=float, default=0.8, metavar="F", help="of the recipe (default: 0.8)")
    parser.add_argument("--split-seed", type=int, default=0, metavar="N", help="of the recipe (default: 0)")
    parser.add_argument("--size", type=int, default=256, metavar="PIXELS", help="images are scaled to (default: 256)")
    parser.add_argument("--add-to", type=int, metavar="N", help="what they add to N real images a user")
    parser.add_argument(
        "--velocities", type=float, nargs=2, default=(-2.0, 6.2), metavar=("BOTTOM", "TOP"),
        help="of the images in m/s (default: -2 6.2, as simulated)",
    )  # fmt: skip
    parser.add_argument("--seconds", type=float, default=2.4, help="that an image spans (default: 2.4, as simulated)")
    parser.add_argument("--steps", type=int, default=800, help="of training the classifier (default: 800)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the classifier (default: 0)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(args) -> int:
    import json

    scores = evaluate_generated(
        MicroDopplerFolder(args.images, size=args.size),
        MicroDopplerFolder(args.real, size=args.size),
        train_fraction=args.train_fraction,
        split_seed=args.split_seed,
        velocity_range=tuple(args.velocities),
        duration=args.seconds,
        add_to=args.add_to,
        steps=args.steps,
        seed=args.seed,
        progress=not args.quiet,
    )
    print(json.dumps(scores, indent=1) if args.json else describe(scores))
    return 0

"""How good generated spectrograms are: is the user recognised, is it a person's motion, do they vary, are they copies?

    radiodiff evaluate generated GENERATED --real REAL

Both are folders of images by user. Four questions, each beside what real images give:

- accuracy: a small classifier learns the users from real images; how often it names the user of a generated image,
  and, as the ceiling, of a real one that it has not seen;
- motion: the torso's velocity and the steps a second, read off the images; how far the users' means are off;
- diversity: the mean distance between images of one user over that of real ones (1 is right, 0 one image repeated);
- copies: the share of generated images nearer to a training image than all but 1 % of unseen real images are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..engines.gait import DURATION, JET, VELOCITY_RANGE

SIDE = 64  # pixels of the classifier's and the distances' images
CLUTTER = 0.4  # metres a second about zero where the ground's echo hides the torso
CADENCES = (1.0, 2.6)  # steps a second that walking people take
COPY_QUANTILE = 0.01


def evaluate_generated(
    generated, real, epochs: int = 30, seed: int = 0, device: str | torch.device = "cpu", progress: bool = False
) -> dict[str, Any]:
    """Scores of generated images against real ones, see the top of this module.

    Args:
        generated, real: Data sets with items of `image`, (channels, height, width) in [-1, 1], and `label`.
        epochs: Of the classifier's training, on 80 % of the real images.
        seed: Of the split and the classifier.
    """
    from ..data.micro_doppler import split_indices

    made, made_labels = _stack(generated)
    images, labels = _stack(real)
    strangers = sorted(set(made_labels.tolist()) - set(labels.tolist()))
    if strangers:
        raise ValueError(f"class {strangers[0]} was generated, but the real images have none of it")
    train, test = split_indices(labels, 0.8, seed)
    if not test or np.bincount(labels)[np.unique(labels)].min() < 3:
        raise ValueError("too few real images: 3 or more of each user are needed")
    classifier = train_classifier(images[train], labels[train], epochs, seed, device, progress)
    scores = {
        "images": len(made),
        "chance": 1.0 / len(np.unique(labels)),
        "accuracy": float((classify(classifier, made) == made_labels).mean()),
        "accuracy_real": float((classify(classifier, images[test]) == labels[test]).mean()),
        "diversity": diversity(made, made_labels) / diversity(images, labels),
    }
    nearest, unseen = nearest_distance(made, images[train]), nearest_distance(images[test], images[train])
    scores["copies"] = float((nearest <= np.quantile(unseen, COPY_QUANTILE)).mean())
    scores["nearest"], scores["nearest_real"] = float(np.median(nearest)), float(np.median(unseen))
    return scores | compare_motion(made, made_labels, images, labels)


# What images are compared as ---------------------------------------------------------------------------------------


def power(image: np.ndarray) -> np.ndarray:
    """(height, width) in 0..1 from an image in [-1, 1]: its gray value, or the place of its colour in jet."""
    if image.shape[0] == 1:
        return (image[0] + 1) / 2
    from scipy.spatial import cKDTree

    pixels = np.moveaxis(image, 0, -1).reshape(-1, 3)
    _, level = cKDTree(JET / 127.5 - 1.0).query(pixels)
    return (level / 255.0).reshape(image.shape[1:])


def _stack(data) -> tuple[np.ndarray, np.ndarray]:
    """All images as powers, (images, height, width) float32, and their labels."""
    if not len(data):
        raise ValueError("there are no images to look at")
    items = [data[i] for i in range(len(data))]
    planes = np.stack([power(np.asarray(item["image"])) for item in items]).astype(np.float32)
    return planes, np.array([item["label"] for item in items])


def small(planes: np.ndarray) -> Tensor:
    """(images, 1, 64, 64), areas averaged."""
    return nn.functional.interpolate(torch.from_numpy(planes)[:, None], size=(SIDE, SIDE), mode="area")


# Who is it? --------------------------------------------------------------------------------------------------------


class UserClassifier(nn.Module):
    """Four convolutions and a mean over time and velocity bands: small enough to learn 31 users in a minute or two."""

    def __init__(self, users: int, width: int = 32) -> None:
        super().__init__()
        widths = [1, width, 2 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for inside, outside in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU(), nn.MaxPool2d(2)]
        # velocities keep their places, moments in time do not
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten(), nn.Dropout(0.3))
        self.head = nn.Linear(4 * widths[-1], users)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layers(2 * images - 1))


def train_classifier(planes, labels, epochs: int, seed: int, device="cpu", progress: bool = False) -> UserClassifier:
    """A classifier of the users, trained with small shifts in time, which no user is known by."""
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = UserClassifier(int(labels.max()) + 1).to(device).train()
        images, targets = small(planes), torch.from_numpy(labels)
        batch = 64
        steps = epochs * -(-len(images) // batch)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
        for _ in tqdm(range(epochs), desc="classifier", unit="epoch", disable=not progress):
            for rows in torch.randperm(len(images), generator=generator).split(batch):
                if len(rows) == 1 and len(images) > 1:  # batch normalisation needs two
                    rows = rows.repeat(2)
                shift = int(torch.randint(-4, 5, (1,), generator=generator))
                shifted = images[rows].roll(shift, -1).to(device)
                loss = nn.functional.cross_entropy(model(shifted), targets[rows].to(device), label_smoothing=0.05)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if schedule.last_epoch < steps:
                    schedule.step()
    return model.eval()


@torch.no_grad()
def classify(model: UserClassifier, planes: np.ndarray) -> np.ndarray:
    device = next(model.parameters()).device
    return torch.cat([model(part.to(device)).argmax(1).cpu() for part in small(planes).split(256)]).numpy()


# Do they move as people do? ----------------------------------------------------------------------------------------


def motion(plane: np.ndarray) -> tuple[float, float]:
    """Metres a second of the torso and steps a second, of a power image with its fastest approach on top.

    The torso is the strongest row outside the ground's echo, smoothed over time. The feet swing once a step and reach
    highest then: the upper edge of the echo repeats with the steps.
    """
    from scipy.ndimage import gaussian_filter

    height, width = plane.shape
    velocities = np.linspace(VELOCITY_RANGE[1], VELOCITY_RANGE[0], height)
    smooth = gaussian_filter(plane.astype(np.float64), (height / 128, width / 64))
    away = np.where(np.abs(velocities)[:, None] > CLUTTER, smooth, -np.inf)
    torso = float(np.median(velocities[away.argmax(0)]))
    # how far above the torso the echo reaches, as the mean velocity of what lies there
    above = np.clip(plane - np.quantile(plane, 0.5), 0, None) * (velocities > 1.6 * max(torso, 0.5))[:, None]
    edge = (above * velocities[:, None]).sum(0)
    edge = (edge - edge.mean()) * np.hanning(width)
    spectrum = np.abs(np.fft.rfft(edge, 16 * width))
    frequencies = np.fft.rfftfreq(16 * width, DURATION / width)
    walking = (frequencies >= CADENCES[0]) & (frequencies <= CADENCES[1])
    return torso, float(frequencies[walking][spectrum[walking].argmax()])


def compare_motion(made, made_labels, images, labels) -> dict[str, float]:
    """Mean absolute differences of the users' mean velocity and cadence, and those between two halves of the real."""
    made_motion, real_motion = (np.array([motion(plane) for plane in planes]) for planes in (made, images))
    off, noise = [], []
    for user in np.unique(made_labels):
        real = real_motion[labels == user]
        off.append(np.abs(made_motion[made_labels == user].mean(0) - real.mean(0)))
        noise.append(np.abs(real[::2].mean(0) - real[1::2].mean(0)))
    off, noise = np.mean(off, 0), np.mean(noise, 0)
    return {
        "velocity_off": float(off[0]),
        "velocity_off_real": float(noise[0]),
        "cadence_off": float(off[1]),
        "cadence_off_real": float(noise[1]),
    }


# Do they vary, and are they copies? --------------------------------------------------------------------------------


def diversity(planes: np.ndarray, labels: np.ndarray) -> float:
    """The mean distance between images of one user, averaged over users with two or more."""
    flat = small(planes).flatten(1)
    distances = [
        torch.pdist(flat[torch.from_numpy(labels == user)]).mean().item()
        for user in np.unique(labels)
        if (labels == user).sum() > 1
    ]
    return float(np.mean(distances)) if distances else float("nan")


def nearest_distance(planes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance of each image to the nearest of the others, root mean square over 64 x 64 pixels."""
    known = small(others).flatten(1)
    parts = small(planes).flatten(1).split(256)
    return torch.cat([torch.cdist(part, known).amin(1) for part in parts]).numpy() / SIDE


# On the command line -----------------------------------------------------------------------------------------------


def describe(scores: dict[str, Any]) -> str:
    """The scores as text, one line each."""
    s = scores
    return "\n".join(
        [
            f"{s['images']} generated images",
            f"accuracy   {s['accuracy']:.3f} (unseen real images {s['accuracy_real']:.3f}, chance {s['chance']:.3f})",
            f"velocity   {s['velocity_off']:.3f} m/s off a user's mean (halves of the real {s['velocity_off_real']:.3f})",
            f"cadence    {s['cadence_off']:.3f} steps/s off a user's mean (halves of the real {s['cadence_off_real']:.3f})",
            f"diversity  {s['diversity']:.3f} of the real images'",
            f"copies     {s['copies']:.3f} nearer to a training image than 99 % of unseen real ones "
            f"(median distance {s['nearest']:.4f}, unseen real {s['nearest_real']:.4f})",
        ]
    )


def add_arguments(parser) -> None:
    parser.add_argument("images", help="the generated ones: a folder with a folder of images for each user")
    parser.add_argument("--real", required=True, help="the real ones, likewise; those the generator was trained on")
    parser.add_argument("--size", type=int, default=256, metavar="PIXELS", help="images are brought to (default: 256)")
    parser.add_argument("--gray", action="store_true", help="the images are gray, not in jet colours")
    parser.add_argument("--epochs", type=int, default=30, metavar="N", help="of the classifier (default: 30)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of split and classifier (default: 0)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    import json

    from ..data.micro_doppler import MicroDopplerFolder

    if args.epochs < 1:
        raise ValueError(f"--epochs must be at least 1; got {args.epochs}")
    channels = 1 if args.gray else 3
    generated, real = (MicroDopplerFolder(f, size=args.size, channels=channels) for f in (args.images, args.real))
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    scores = evaluate_generated(generated, real, args.epochs, args.seed, device, progress=True)
    print(json.dumps(scores, indent=1) if args.json else describe(scores))
    return 0

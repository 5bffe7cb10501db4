"""Real and generated spectrograms of some users in one picture.

python examples/lightningdit/figures.py data/simulated_users generated docs/images/micro_doppler_users.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from radiodiff_diffusers.data.micro_doppler import MicroDopplerFolder, split_indices
from radiodiff_diffusers.evaluation.generated import power_of

EACH = 4  # images of a kind a user


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", help="folder of real images, by user")
    parser.add_argument("generated", help="folder of generated ones")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--users", type=int, nargs="+", default=[0, 7, 14, 21, 28])
    parser.add_argument("--size", type=int, default=64, help="of the images")
    args = parser.parse_args()
    real, generated = (MicroDopplerFolder(folder, size=args.size) for folder in (args.real, args.generated))
    held_out = real.subset(split_indices(real.labels, 0.8, 0)[1])

    figure, axes = plt.subplots(len(args.users), 2 * EACH, figsize=(1.5 * 2 * EACH, 1.5 * len(args.users)))
    for row, user in zip(axes, args.users, strict=True):
        for axis in row:
            axis.set_xticks([]), axis.set_yticks([])
        for part, folder in ((row[:EACH], held_out), (row[EACH:], generated)):
            for axis, index in zip(part, np.flatnonzero(folder.labels == user), strict=False):
                axis.imshow(power_of(folder[int(index)]["image"]), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        row[0].set_ylabel(f"user {user}")
    axes[0, 0].set_title("real, held out", loc="left")
    axes[0, EACH].set_title("generated", loc="left")
    figure.tight_layout()
    figure.savefig(args.picture, dpi=80)


if __name__ == "__main__":
    main()

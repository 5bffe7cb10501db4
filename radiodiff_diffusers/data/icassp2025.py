"""The ICASSP 2025 indoor challenge: path loss in 25 buildings, as a data set of (`Scene`, `RadioMap`).

    train = ICASSP2025("ICASSP2025_Dataset", "train", task=1, crop=96)
    collate([train[0]], ["reflectance", "transmittance", "distance"])

Task 1 has one antenna and one frequency, task 2 three frequencies, task 3 five antennas as well. Maps differ in size:
crop them (`crop=`), or use a batch size of 1. The indoor channels are in `radiodiff_diffusers.channels_indoor`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..scene import RadioMap, Scene
from .crops import crop_pair
from .icassp2025_files import ICASSP2025Folder, Name, read_bands, require_bands, select
from .plane_cache import PlaneCache

if TYPE_CHECKING:
    import torch

BUILDINGS = 25
SCHEMES = ("building", "sample")
SPLITS = ("train", "val", "test", "all")

# What each of the original suite's autoencoders sees; "target" is the radio map.
VIEWS = {
    "building": ("reflectance", "transmittance"),
    "antenna": ("free_space_loss",),
    "radio": ("target",),
}


def read_scene(root: str | Path, name: str, task: int = 1, frequency_hz: float | None = None) -> Scene:
    """One scene by its file name, such as `"B1_Ant1_f1_S0"`; the Outputs folder is not needed.

    `frequency_hz` is for samples of other bands than f1 868 MHz, f2 1.8 GHz, f3 3.5 GHz.
    """
    parsed = Name.parse(Path(name).stem)
    if parsed is None:
        raise ValueError(f"{name!r} is not the name of a sample: expected B#_Ant#_f#_S#, such as B1_Ant1_f1_S0")
    return ICASSP2025Folder(root).scene(parsed, task, frequency_hz)


def choose_samples(names: Sequence[Name], split: str, scheme: str = "building") -> list[Name]:
    """Those of `names` that belong to a split.

    Args:
        scheme: `"building"` (default) keeps every building on one side: 20 for training, 2 for validation, 3 for test,
            by a seed-42 shuffle; buildings beyond 25 are test buildings. `"sample"` shuffles samples, 80 : 10 : 10, as
            the
            original does (1000, 125, 125 in task 1): every building is on all sides, so its scores say little about
                new
            buildings.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown split scheme {scheme!r}: use one of {', '.join(SCHEMES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if split == "all":
        return list(names)
    if scheme == "sample":
        order = np.random.RandomState(42).permutation(len(names))
        tenth = len(names) // 10
        first, last = {
            "train": (0, len(names) - 2 * tenth),
            "val": (len(names) - 2 * tenth, len(names) - tenth),
            "test": (len(names) - tenth, len(names)),
        }[split]
        return sorted(names[k] for k in order[first:last])
    shuffled = [int(k) + 1 for k in np.random.RandomState(42).permutation(BUILDINGS)]
    side = set({"train": shuffled[:20], "val": shuffled[20:22], "test": shuffled[22:]}[split])
    return [n for n in names if n.building in side or (split == "test" and n.building > BUILDINGS)]


class ICASSP2025:
    """(`Scene`, `RadioMap`) of every sample in one split.

    Args:
        root: the folder with Inputs/, Outputs/, Positions/ and Radiation_Patterns/.
        split (`str`, defaults to `"train"`): `"train"`, `"val"`, `"test"` or `"all"`.
        task (`int`, defaults to 1): 1, 2 or 3.
        scheme (`str`, defaults to `"building"`): `"building"` or `"sample"`, see `choose_samples`.
        crop (`int` or `(height, width)`, *optional*): cut to this size round the transmitter, padded where a map is
            smaller. Training crops are drawn anew each epoch (`set_epoch`), others have the transmitter in the middle.
        margin (`int`, defaults to 10): pixels that a drawn crop keeps between the transmitter and its border, where
            the map allows it.
        random_crop (`bool`, *optional*): draw crops; where left out, in training alone.
        buildings, antennas, frequencies (*optional*): only these numbers.
        hertz (`dict`, *optional*): frequency number -> hertz, where it differs from f1 868 MHz, f2 1.8 GHz, f3 3.5
            GHz: `{2: 2.4e9}` for the challenge's test band.
        seed (`int`, defaults to 0): decides the crops, with the epoch.
        cache (`PlaneCache`, *optional*): keeps costly channels on disk.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        task: int = 1,
        scheme: str = "building",
        crop: int | tuple[int, int] | None = None,
        margin: int = 10,
        random_crop: bool | None = None,
        buildings: Iterable[int] | None = None,
        antennas: Iterable[int] | None = None,
        frequencies: Iterable[int] | None = None,
        hertz: dict[int, float] | None = None,
        seed: int = 0,
        cache: PlaneCache | None = None,
    ) -> None:
        self.folder = ICASSP2025Folder(root)
        self.task, self.crop, self.margin, self.seed, self.cache = task, crop, margin, seed, cache
        self.random_crop = split == "train" if random_crop is None else random_crop
        self.hertz = read_bands(hertz)
        self.epoch = 0
        chosen = choose_samples(self.folder.names(task), split, scheme)
        chosen = select(chosen, buildings, antennas, frequencies)
        if not chosen:
            raise ValueError(
                f"{root}: no samples of task {task} in split {split!r} of scheme {scheme!r} with these choices"
            )
        require_bands(chosen, self.hertz)
        self.names = chosen

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Scene, RadioMap]:
        name = self.names[index]
        scene, radio_map = self.folder.pair(name, self.task, self.hertz.get(name.frequency))
        if self.crop is not None:
            rng = np.random.default_rng([self.seed, self.epoch, *name]) if self.random_crop else None
            scene, radio_map = crop_pair(scene, radio_map, self.crop, self.margin, rng)
        if self.cache is not None:
            self.cache.fill(scene)
        return scene, radio_map

    def files(self, index: int) -> str:
        """The file of a sample's map, as reports name it."""
        return f"Outputs/Task_{self.task}_ICASSP/{self.names[index]}.png"

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops."""
        self.epoch = epoch


def collate_view(batch: Sequence[tuple[Scene, RadioMap]], view: str) -> torch.Tensor:
    """(B, C, H, W) in [-1, 1]: what one of the original suite's autoencoders sees of a batch.

    `"building"` is reflectance and transmittance, `"antenna"` the free-space loss with the antenna's pattern,
    `"radio"` the path loss itself.
    """
    from .collate import collate

    if view not in VIEWS:
        raise ValueError(f"unknown view {view!r}: use one of {', '.join(VIEWS)}")
    if VIEWS[view] == ("target",):
        return collate(batch, ["buildings"])["target"]
    return collate(batch, VIEWS[view])["condition"]

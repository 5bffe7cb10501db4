"""Other tasks made from the same data: a map's edges, its k² as a condition, scenes that miss buildings; and made-up
rooms.

Each wrapper is a data set of (Scene, RadioMap) again, named in `data.derive`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..scene import GainScale, RadioMap, Scene, read_image


class Derived:
    """A data set whose pairs go through a function (scene, map, random generator) first."""

    def __init__(self, source: Any, change: Any, seed: int = 0):
        self.source, self.change, self.seed = source, change, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Scene, RadioMap]:
        return self._changed(index, *self.source[index])

    def __iter__(self):
        for index, (scene, radio_map) in enumerate(self.source):
            yield self._changed(index, scene, radio_map)

    def _changed(self, index: int, scene: Scene, radio_map: RadioMap) -> tuple[Scene, RadioMap]:
        return self.change(scene, radio_map, np.random.default_rng([self.seed, index, 3]))

    def __getattr__(self, name: str) -> Any:
        # `set_epoch` and `files`, where the data set has them
        if name in ("set_epoch", "files"):
            return getattr(self.source, name)
        raise AttributeError(name)


def edges_of_map(scene: Scene, radio_map: RadioMap, rng: np.random.Generator) -> tuple[Scene, RadioMap]:
    """The edge task: the map is known (as the scene's measurements), its edges are wanted."""
    from ..data.edges import edge_map

    edges = edge_map(radio_map.gray)
    return _with(scene, measurements=radio_map.gain_db), RadioMap.from_gray(edges.astype(np.float32))


def k2_of_map(scene: Scene, radio_map: RadioMap, rng: np.random.Generator) -> tuple[Scene, RadioMap]:
    """The k² feature of the very map that is wanted, as the published code conditions on it: a bound, not a
    prediction."""
    from ..data.k2 import k2_feature

    return _with(scene, k2=k2_feature(radio_map, scene.transmitter)), radio_map


def missing_buildings(scene: Scene, radio_map: RadioMap, rng: np.random.Generator) -> tuple[Scene, RadioMap]:
    """1 to 4 buildings are missing in the scene, though not in the map."""
    from scipy.ndimage import label

    labels, count = label(scene.buildings)
    gone = (
        rng.choice(np.arange(1, count + 1), size=min(count, int(rng.integers(1, 5))), replace=False) if count else []
    )
    return _with(scene, buildings=scene.buildings & ~np.isin(labels, gone), polygons=None), radio_map


def _with(scene: Scene, **changes: Any) -> Scene:
    return scene.replace(**changes)


DERIVED = {"edges": edges_of_map, "k2": k2_of_map, "missing_buildings": missing_buildings}


def derive(source: Any, names: list[str], seed: int = 0) -> Any:
    """The data set with these changes, in order."""
    for name in names:
        if name not in DERIVED:
            raise ValueError(f"data.derive names {name!r}; known: {', '.join(DERIVED)}")
        source = Derived(source, DERIVED[name], seed)
    return source


class EdgePairs:
    """Folders `image/` and `edge/` side by side, flat, of equal names (as `radiodiff data edges --layout pairs`
    writes them)."""

    def __init__(self, root: str | Path, split: str = "train"):
        root = Path(root)
        self.root = root / split if (root / split / "edge").is_dir() else root
        self.names = sorted(
            p.name for p in (self.root / "edge").iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg")
        )
        lonely = [n for n in self.names if not (self.root / "image" / n).exists()]
        if lonely:
            raise ValueError(f"{self.root}: edge/{lonely[0]} has no image of its name ({len(lonely)} in all)")

    @staticmethod
    def found_in(root: str | Path, split: str) -> bool:
        folders = (Path(root), Path(root) / split)
        return any(
            (f / "edge").is_dir() and (f / "image").is_dir() and not (Path(root) / "manifest.json").exists()
            for f in folders
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Scene, RadioMap]:
        name = self.names[index]
        image = RadioMap.from_gray(read_image(self.root / "image" / name).astype(np.float32))
        edges = RadioMap.from_gray(read_image(self.root / "edge" / name).astype(np.float32))
        scene = Scene(np.zeros(image.shape, bool), measurements=image.gain_db, name=Path(name).stem)
        return scene, edges

    def files(self, index: int) -> str:
        return f"edge/{self.names[index]}"


class MadeUpRooms:
    """Rooms with a few walls and simple physics (free space, and what each wall takes), to try the indoor recipes
    without
    their data set: `data.source: made_up_rooms`. Path loss in dB, as the ICASSP 2025 set has it."""

    def __init__(self, split: str = "train", count: int = 64, size: int = 64, seed: int = 0):
        self.count, self.size, self.seed = count, size, [seed, {"train": 0, "val": 1, "test": 2, "all": 3}[split]]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Scene, RadioMap]:
        from ..channels_indoor import free_space_loss_db, wall_loss_db

        rng, size = np.random.default_rng([*self.seed, index]), self.size
        transmittance = np.zeros((size, size), np.float32)
        for _ in range(int(rng.integers(3, 6))):
            place, loss = int(rng.integers(4, size - 6)), float(rng.uniform(3, 12))
            start, length = int(rng.integers(0, size // 2)), int(rng.integers(size // 3, size))
            wall = np.s_[place : place + 2, start : start + length]
            (transmittance if rng.random() < 0.5 else transmittance.T)[wall] = loss
        free = np.argwhere(transmittance == 0)
        y, x = free[rng.integers(len(free))]
        angles = np.radians(np.arange(360))
        pattern = (-20 * np.sin(angles / 2) ** 2).astype(np.float32) if rng.random() < 0.5 else None
        scene = Scene(
            np.zeros((size, size), bool),
            transmitter=(float(x), float(y)),
            metres_per_pixel=0.25,
            frequency_hz=float(rng.choice([868e6, 1.8e9, 3.5e9])),
            reflectance=transmittance * np.float32(0.7),
            transmittance=transmittance,
            antenna_pattern=pattern,
            azimuth=float(rng.integers(360)),
            name=f"room_{index}",
        )
        loss = np.clip(free_space_loss_db(scene) + wall_loss_db(scene), 13, 160)
        return scene, RadioMap(-loss, scale=GainScale.INDOOR, metres_per_pixel=0.25)

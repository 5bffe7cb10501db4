"""Arranging the ICASSP 2025 indoor set for training, and reading what was arranged.

Two layouts, each split in train/, val/ and test/, with a manifest.json that says how every file was cut:

    arranged (256 x 256 round the transmitter)          multi-condition (320 x 320)
      train/image/B1_Ant1_f1_S0.png                       train/condition1/B1_Ant1_f1_S0.png
        red: reflectance, green: transmittance,             red: reflectance, green: transmittance
        blue: free-space loss with the pattern            train/condition2/...png   distance in metres
      train/edge/B1_Ant1_f1_S0.png    path loss           train/target/...png       path loss

All gray levels are dB (metres for distance), as in the original set. Maps smaller than the crop are padded on the
right and below: walls and losses with 0, path loss with 160 (no signal); the manifest's `valid` is the part that is
real.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..channels_indoor import free_space_loss_db
from ..geometry import distance_metres
from ..scene import GainScale, RadioMap, Scene
from .crops import crop_corner, pad_pair
from .icassp2025 import choose_samples
from .icassp2025_files import (
    FREQUENCIES,
    HEIGHT,
    METRES_PER_PIXEL,
    ICASSP2025Folder,
    Name,
    read_bands,
    read_input,
    require_bands,
    select,
)
from .plane_cache import PlaneCache
from .png import read_gray
from .radiomapseer_writer import write_image, write_whole
from .splits import whole_numbers

MANIFEST = "manifest.json"
SIZES = {"arranged": 256, "multi-condition": 320}
FOLDERS = {"arranged": ("image", "edge"), "multi-condition": ("condition1", "condition2", "target")}
FITS = ("crop", "resize")
_CHOICES = ("buildings", "antennas", "frequencies")


@dataclass(frozen=True)
class Arrangement:
    """How a set is arranged.

    Args:
        layout (`str`): `"arranged"` or `"multi-condition"`.
        task (`int`): 1, 2 or 3.
        scheme (`str`): `"building"` or `"sample"`, see `radiodiff_diffusers.data.icassp2025.choose_samples`.
        size (`int`, *optional*): side in pixels; 256 or 320 by layout where left out.
        fit (`str`): `"crop"` keeps 0.25 m a pixel, with the transmitter in the middle where the map allows it.
            `"resize"` squeezes the whole map into the square instead: both scales change, and the manifest says how.
        buildings, antennas, frequencies (*optional*): only these numbers. Which split a sample is in does not change.
        hertz (`dict`, *optional*): frequency number -> hertz, where it differs from f1 868 MHz, f2 1.8 GHz, f3 3.5
            GHz: `{2: 2.4e9}` for the challenge's test band.
    """

    layout: str = "arranged"
    task: int = 1
    scheme: str = "building"
    size: int | None = None
    fit: str = "crop"
    buildings: Sequence[int] | None = None
    antennas: Sequence[int] | None = None
    frequencies: Sequence[int] | None = None
    hertz: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        if self.layout not in SIZES:
            raise ValueError(f"unknown layout {self.layout!r}: use one of {', '.join(SIZES)}")
        if self.fit not in FITS:
            raise ValueError(f"unknown fit {self.fit!r}: use one of {', '.join(FITS)}")
        if self.size is None:
            object.__setattr__(self, "size", SIZES[self.layout])
        if self.size < 16:
            raise ValueError(f"size must be at least 16 pixels; got {self.size}")
        for name in _CHOICES:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, sorted(set(whole_numbers(getattr(self, name), name))))
        # As JSON has it, so that it compares with a manifest's.
        bands = {str(band): value for band, value in sorted(read_bands(self.hertz).items())}
        object.__setattr__(self, "hertz", bands or None)


def arrange(
    root: str | Path,
    output: str | Path,
    arrangement: Arrangement | None = None,
    workers: int | None = None,
    progress: Callable[[Iterable, int], Iterable] | None = None,
) -> dict[str, Any]:
    """Arrange a whole set. Run it again to complete what a stopped run left.

    Args:
        root: the ICASSP 2025 folder.
        output: where to; new, or one that the same arrangement was begun in.
        workers: threads; one a core where left out.
        progress: wraps the finished files and their number, for a progress bar.

    Returns:
        `{"train", "val", "test", "failed"}`: numbers of samples, and for each that could not be read a line that says
        why.
    """
    from concurrent.futures import ThreadPoolExecutor

    arrangement = arrangement or Arrangement()
    folder, output = ICASSP2025Folder(root), Path(output)
    hertz = read_bands(arrangement.hertz)
    names = folder.names(arrangement.task)
    jobs = []
    for split in ("train", "val", "test"):
        chosen = choose_samples(names, split, arrangement.scheme)
        chosen = select(chosen, arrangement.buildings, arrangement.antennas, arrangement.frequencies)
        jobs += [(split, name) for name in chosen]
    if not jobs:
        wanted = [f"{key} {value}" for key, value in asdict(arrangement).items() if key in _CHOICES and value]
        raise ValueError(
            f"{root}: task {arrangement.task} has no samples" + (f" of {', '.join(wanted)}" if wanted else "")
        )
    require_bands((name for _, name in jobs), hertz)
    _claim(output, arrangement)
    entries: dict[str, Any] = {}
    failed: list[str] = []

    def one(job: tuple[str, Name]) -> tuple[str, dict[str, Any] | str]:
        split, name = job
        try:
            about = _arrange_one(folder, output / split, name, arrangement, hertz.get(name.frequency))
            return str(name), {"split": split, **about}
        except ValueError as error:
            return str(name), str(error)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        done = pool.map(one, jobs)
        for name, result in progress(done, len(jobs)) if progress else done:
            if isinstance(result, str):
                failed.append(result)
            else:
                entries[name] = result
    antennas = {str(k): folder.pattern(k).tolist() for k in sorted({Name.parse(name).antenna for name in entries})}
    _write_manifest(output, arrangement, entries, antennas)
    counts = {s: sum(e["split"] == s for e in entries.values()) for s in ("train", "val", "test")}
    return {**counts, "failed": failed}


def _arrange_one(
    folder: ICASSP2025Folder, output: Path, name: Name, arrangement: Arrangement, frequency_hz: float | None
) -> dict[str, Any]:
    scene, radio_map = folder.pair(name, arrangement.task, frequency_hz)
    size, (height, width), (x, y) = arrangement.size, scene.shape, scene.transmitter
    about = {"frequency_hz": scene.frequency_hz, "azimuth": scene.azimuth, "metres_per_pixel": METRES_PER_PIXEL}
    if arrangement.fit == "crop":
        scene, radio_map = pad_pair(scene, radio_map, (size, size))
        left, top = crop_corner(scene.shape, (x, y), (size, size))
        about["transmitter"] = [x - left, y - top]
        about["box"] = [left, top, size, size]
        about["valid"] = [min(size, width - left), min(size, height - top)]
    else:
        about["transmitter"] = [round((x + 0.5) * size / width - 0.5, 3), round((y + 0.5) * size / height - 0.5, 3)]
        about["box"] = [0, 0, width, height]
        about["valid"] = [size, size]
        about["metres_per_pixel"] = [METRES_PER_PIXEL * width / size, METRES_PER_PIXEL * height / size]
    planes = {
        "reflectance": scene.reflectance,
        "transmittance": scene.transmittance,
        "free_space": np.clip(free_space_loss_db(scene), 0, 255),
        "distance": np.clip(distance_metres(scene), 0, 255),
        "loss": radio_map.gray,
    }
    if arrangement.fit == "crop":
        planes = {key: plane[top : top + size, left : left + size] for key, plane in planes.items()}
    else:
        planes = {key: _resize(plane, size, key in {"reflectance", "transmittance"}) for key, plane in planes.items()}
    planes = {key: np.rint(plane).astype(np.uint8) for key, plane in planes.items()}
    walls = [planes["reflectance"], planes["transmittance"]]
    if arrangement.layout == "arranged":
        pictures = {"image": np.stack([*walls, planes["free_space"]], -1), "edge": planes["loss"]}
    else:
        empty = np.zeros_like(walls[0])
        pictures = {
            "condition1": np.stack([*walls, empty], -1),
            "condition2": planes["distance"],
            "target": planes["loss"],
        }
    for kind, picture in pictures.items():
        write_image(output / kind / f"{name}.png", picture)
    return about


def _resize(plane: np.ndarray, size: int, nearest: bool) -> np.ndarray:
    from PIL import Image

    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.asarray(plane, np.float32)).resize((size, size), how))


def _claim(output: Path, arrangement: Arrangement) -> None:
    """Refuse to mix two arrangements in one folder."""
    path = output / MANIFEST
    if path.is_file():
        before = load_manifest(output)["arrangement"]
        now = asdict(arrangement)
        for key, value in now.items():
            if before.get(key) != value:
                raise ValueError(
                    f"{output} was arranged with {key} {before.get(key)!r}, not {value!r}: choose another folder"
                )
    elif output.is_dir() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty and was not arranged by this command: choose another folder")
    else:
        _write_manifest(output, arrangement, {})


def _write_manifest(
    output: Path, arrangement: Arrangement, entries: dict[str, Any], antennas: dict[str, list[float]] | None = None
) -> None:
    content = {
        "what": "ICASSP 2025 indoor maps, arranged by radiodiff data arrange",
        "arrangement": asdict(arrangement),
        "antennas": antennas or {},
        "samples": dict(sorted(entries.items(), key=lambda item: Name.parse(item[0]))),
    }
    write_whole(output / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


def load_manifest(root: Path) -> dict[str, Any]:
    """The manifest of an arranged folder; empty sections where there is none, as in folders of the original suite."""
    path = root / MANIFEST
    if not path.is_file():
        return {"arrangement": {}, "antennas": {}, "samples": {}}
    try:
        content = json.loads(path.read_bytes())
        return {key: content[key] for key in ("arrangement", "antennas", "samples")}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: arrange the set anew into another folder") from None


def arranged_layout(root: Path) -> str | None:
    """Which of the two layouts a folder has, if any."""
    for layout, folders in FOLDERS.items():
        if any(all((root / split / f).is_dir() for f in folders) for split in ("train", "val", "test")):
            return layout
    return None


class ArrangedIndoor:
    """(`Scene`, `RadioMap`) of one split of an arranged folder, in either layout.

    Folders that the original suite arranged are read as well. They have no manifest: the transmitter is then where the
    free-space loss or the distance is least, and the antenna is taken as isotropic.
    """

    def __init__(self, root: str | Path, split: str = "train", *, cache: PlaneCache | None = None) -> None:
        self.root, self.cache = Path(root), cache
        self.layout = arranged_layout(self.root)
        if self.layout is None:
            raise ValueError(
                f"{root} is not an arranged indoor set: expected train/image/ and train/edge/, or train/condition1/, "
                "train/condition2/ and train/target/ (radiodiff data arrange makes them)"
            )
        manifest = load_manifest(self.root)
        self.samples, self.antennas = manifest["samples"], manifest["antennas"]
        splits = ("train", "val", "test") if split == "all" else (split,)
        last = FOLDERS[self.layout][-1]
        self.items = [
            (s, name)
            for s in splits
            for name in sorted(filter(None, (Name.parse(p.stem) for p in (self.root / s / last).glob("*.png"))))
        ]
        if not self.items:
            raise ValueError(f"{root} has no samples in split {split!r}")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Scene, RadioMap]:
        split, name = self.items[index]
        about = self.samples.get(str(name), {})
        folder = self.root / split
        first, last = FOLDERS[self.layout][0], FOLDERS[self.layout][-1]
        reflectance, transmittance, third = read_input(folder / first / f"{name}.png")
        if self.layout == "multi-condition":
            third = read_gray(folder / "condition2" / f"{name}.png").astype(np.float32)
        transmitter = about.get("transmitter") or _least(third, about.get("valid"))
        walls = (reflectance > 0) | (transmittance > 0)
        walls[int(transmitter[1] + 0.5), int(transmitter[0] + 0.5)] = False
        scale = about.get("metres_per_pixel", METRES_PER_PIXEL)
        scene = Scene(
            walls,
            transmitter=transmitter,
            metres_per_pixel=float(np.mean(scale)),
            frequency_hz=about.get("frequency_hz", FREQUENCIES.get(name.frequency, FREQUENCIES[1])),
            transmitter_height=HEIGHT,
            receiver_height=HEIGHT,
            reflectance=reflectance,
            transmittance=transmittance,
            antenna_pattern=self._pattern(name),
            azimuth=about.get("azimuth", 0.0),
            name=str(name),
        )
        if self.cache is not None:
            self.cache.fill(scene)
        gray = read_gray(folder / last / f"{name}.png")
        return scene, RadioMap.from_gray(gray, scale=GainScale.INDOOR, metres_per_pixel=scene.metres_per_pixel)

    def _pattern(self, name: Name) -> np.ndarray | None:
        gains = np.asarray(self.antennas.get(str(name.antenna), [0.0]), np.float32)
        return gains if gains.any() else None


def _least(plane: np.ndarray, valid: Any) -> tuple[float, float]:
    width, height = valid or plane.shape[::-1]
    row, column = np.unravel_index(np.argmin(plane[:height, :width]), (height, width))
    return float(column), float(row)

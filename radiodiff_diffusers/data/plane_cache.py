"""Keeps channels that are costly to compute on disk, so that a data loader computes each once.

The key is what the channel is made from (outlines, cars, transmitter, scale, heights), not a file name: a changed
scene gets a changed key, and several data sets can share one folder. A plane takes 2 bytes a pixel (float16, true to
0.0005).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

import radiodiff_diffusers

from ..scene import Scene


class PlaneCache:
    """A folder of channel planes.

    Args:
        folder: made where it does not exist. Delete it whenever you like.
        channels: which channels to keep; the rest is computed as ever.
    """

    def __init__(self, folder: str | Path, channels: tuple[str, ...] | list[str]) -> None:
        from ..channels import check_channels

        check_channels(channels)
        self.folder, self.channels = Path(folder), tuple(channels)

    def fill(self, scene: Scene) -> Scene:
        """Give a scene its kept channels, computing and keeping those that are not there yet; returns the same
        scene.
        """
        if scene._cut_from is not None:  # a crop reads its channels off the whole
            self.fill(scene._cut_from[0])
            return scene
        key = self._key(scene)
        for channel in self.channels:
            path = self.folder / channel / key[:2] / f"{key}.npy"
            try:
                plane = np.load(path)
            except (OSError, ValueError, EOFError):
                plane = None  # not there yet, or cut short by a full disk
            if plane is None or plane.shape != scene.shape:
                plane = scene.plane(channel).astype(np.float16)
                self._keep(path, plane)
            scene._planes[channel] = plane.astype(np.float32)
        return scene

    @staticmethod
    def _key(scene: Scene) -> str:
        numbers = (
            getattr(radiodiff_diffusers, "__version__", None),  # another version may compute channels otherwise
            scene.shape,
            scene.transmitter,
            scene.metres_per_pixel,
            scene.frequency_hz,
            scene.transmitter_height,
            scene.receiver_height,
            scene.building_height,
            scene.car_height,
            scene.azimuth,
        )
        digest = hashlib.blake2b(repr(numbers).encode(), digest_size=16)
        for name in ("buildings", "cars", "reflectance", "transmittance", "antenna_pattern", "measurements", "k2"):
            plane = getattr(scene, name)
            digest.update(name.encode() if plane is not None else b"-")
            if plane is not None:
                digest.update(np.packbits(plane) if plane.dtype == bool else np.ascontiguousarray(plane))
        return digest.hexdigest()

    @staticmethod
    def _keep(path: Path, plane: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(unfinished, "wb") as file:
                np.save(file, plane)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

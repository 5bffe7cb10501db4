"""Keeps channels that are costly to compute on disk, so that a data loader computes each once.

The key is what the channel is made from (outlines, cars, transmitter, scale, heights), not a file name: a changed
scene gets a changed key, and several data sets can share one folder. A plane takes 2 bytes a pixel: channels lie in
[-1, 1], so whole numbers of 1/32767 are truer than float16, and five times as fast to read.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

import radiodiff_diffusers

from ..scene import POSITIVE_NUMBERS, STEP, Scene
from .png import read_bytes


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
        height, width = scene.shape
        for channel in self.channels:
            path = f"{self.folder}/{channel}/{key[:2]}/{key}.int16"  # plain text: path objects are slow
            try:
                plane = read_bytes(path)
            except OSError:
                plane = b""
            if len(plane) != 2 * height * width:  # not there yet, or cut short by a full disk
                plane = self._encode(scene.plane(channel), channel)
                self._keep(Path(path), plane)
            scene._planes[channel] = np.frombuffer(plane, np.int16).reshape(height, width)
        return scene

    @staticmethod
    def _key(scene: Scene) -> str:
        numbers = (
            getattr(radiodiff_diffusers, "__version__", None),  # another version may compute channels otherwise
            scene.shape,
            scene.transmitter,
            *(getattr(scene, name) for name in POSITIVE_NUMBERS),
            scene.azimuth,
            scene.raster_offset,
        )
        digest = hashlib.blake2b(repr(numbers).encode(), digest_size=16)
        for name in ("buildings", "cars", "reflectance", "transmittance", "antenna_pattern", "measurements", "k2"):
            plane = getattr(scene, name)
            digest.update(name.encode() if plane is not None else b"-")
            if plane is not None:
                digest.update(np.packbits(plane) if plane.dtype == bool else np.ascontiguousarray(plane))
        for polygon in scene.polygons or ():
            for ring in polygon:
                digest.update(f"ring of {len(ring)}".encode())
                digest.update(np.ascontiguousarray(ring))
        return digest.hexdigest()

    @staticmethod
    def _encode(plane: np.ndarray, channel: str) -> bytes:
        if not np.abs(plane).max() <= 1:
            raise ValueError(f"channel {channel!r} cannot be cached: its values must lie in [-1, 1]")
        return np.rint(plane / STEP).astype(np.int16).tobytes()

    @staticmethod
    def _keep(path: Path, plane: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            unfinished.write_bytes(plane)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

"""Spectrograms by user from Parquet shards or the Hub, as a folder of images again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from .hub import HubMaps, StreamedMaps, is_packed, open_dataset
from .micro_doppler import classes_of


def users_folder(source: str | Path) -> Path:
    """The folder with a folder of images for each user that a source is.

    A folder of files is itself. Of Parquet shards and Hub data sets it is unpacked once, from all splits, into the
    cache of `datasets`: what trains on people divides every user's images by itself.
    """
    if Path(source).is_dir() and not is_packed(source):
        return Path(source)
    import datasets

    rows = _rows(source)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "radiodiff_diffusers" / f"users-{rows._fingerprint}"
    if not folder.is_dir():
        try:
            export_users(source, folder)
        except (ValueError, OSError):
            if not folder.is_dir():  # else another process was faster
                raise
    return folder


def export_users(source: str | Path, folder: str | Path, progress: Any = None) -> Path:
    """Write the spectrograms of Parquet shards or a Hub data set as `folder/user_00/name.png ...`, byte for byte.

    Args:
        source: a folder of Parquet shards, or a name on the Hub.
        folder: new or empty. It appears when it is complete.
        progress: wraps the rows and their number, for a progress bar.
    """
    rows, folder = _rows(source), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder")
    names = _user_names(rows)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    taken: set[Path] = set()
    try:
        for number, row in enumerate(progress(rows, len(rows)) if progress else rows):
            inside = [p for p in PurePosixPath(row.get("condition") or "").parts if p not in ("/", "..", ".")]
            name = PurePosixPath(row.get("path") or row["image"].get("path") or "").name or f"{number:06d}.png"
            path = unfinished.joinpath(names[row["label"]], *inside, name)
            if path in taken:
                path = path.with_name(f"{number:06d}_{name}")
            taken.add(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            data = row["image"].get("bytes")
            path.write_bytes(Path(row["image"]["path"]).read_bytes() if data is None else data)
        if folder.is_dir():
            folder.rmdir()
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _rows(source: str | Path) -> Any:
    from datasets import Image

    if not is_packed(source):
        raise ValueError(f"{source} is a folder of files: expected Parquet shards, or a name on the Hub")
    rows = open_dataset(source, "all")
    if isinstance(rows, (HubMaps, StreamedMaps)) or not {"image", "label"} <= set(rows.features):
        raise ValueError(f"{source} holds no spectrograms by user: expected the columns image and label")
    return rows.cast_column("image", Image(decode=False))


def _user_names(rows: Any) -> dict[int, str]:
    """A folder name for each class: what the data set calls its users, where such folders are those classes again."""
    labels = sorted(set(rows["label"]))
    names = getattr(rows.features["label"], "names", None)
    if names:
        called = {label: names[label] for label in labels}
        try:
            if classes_of(sorted(called.values()), "") == called:
                return called
        except ValueError:
            pass
    return {label: f"user_{label:02d}" for label in labels}

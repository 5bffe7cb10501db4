"""Checkpoints that survive: written beside, flushed to disk, renamed, checksummed, and looked at before they are
trusted.

checkpoints/step_00001000/
    models.safetensors      weights and buffers of every model that is trained
    ema.safetensors         their moving average, where there is one
    training.pt             optimisers, gradient scaler, random states of every process
    state.json              step, position in the data, losses, configuration
    manifest.json           size and SHA-256 of each of these files
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
DROPPED = "dropped"
_WRITING = ".writing-"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class CheckpointNotWritten(Exception):
    """A checkpoint could not be written, in one line; the ones before it are untouched."""


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def write_checkpoint(root: Path, step: int, write_files: Callable[[Path], None]) -> Path:
    """Let `write_files` fill a new folder and make it a checkpoint in one atomic step.

    A reader sees the whole checkpoint or none: the folder gets its name by a rename after everything is on the disk.
    """
    root = Path(root)
    target, partial = root / folder_name(step), root / (_WRITING + folder_name(step))
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        partial.mkdir()
        write_files(partial)
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        manifest = {str(p.relative_to(partial)): {"size": p.stat().st_size, "sha256": _sha256(p)} for p in files}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*files, partial / MANIFEST, partial]:
            _fsync(path)
        _remove(target)  # a rewritten step, as after a rollback
        os.rename(partial, target)
        _fsync(root)
    except Exception as error:
        reason = _explain(error, root, step)  # while what filled the disk is still on it
        shutil.rmtree(partial, ignore_errors=True)
        if not is_about_the_disk(error):
            raise
        raise CheckpointNotWritten(reason) from error
    return target


def find_problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file is there and has its checksum."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError) as error:
        return f"its {MANIFEST} cannot be read ({error})"
    for name, expected in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
        try:
            if _sha256(path) != expected["sha256"]:
                return f"{name} does not have its checksum"
        except OSError as error:
            return f"{name} cannot be read ({error})"
    return None


def list_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders, the oldest first."""
    return sorted(p for p in Path(root).glob("step_*") if p.is_dir())


def choose_checkpoint(root: Path, which: str) -> Path | None:
    """The checkpoint that `--resume` means: `latest`, a step, or a folder. None where there is nothing to resume.

    `latest` passes over damaged checkpoints, naming each; one that was asked for by name must be sound.
    """
    if which == "latest":
        for folder in reversed(list_checkpoints(root)):
            problem = find_problem(folder)
            if problem is None:
                return folder
            logger.warning("checkpoint %s is damaged: %s; trying the one before it", folder, problem)
        return None
    if which.isdigit():
        folder = Path(root) / folder_name(int(which))
        if not folder.is_dir():
            known = ", ".join(str(int(p.name[5:])) for p in list_checkpoints(root)) or "none"
            raise ValueError(f"there is no checkpoint of step {which} in {root}; there are: {known}")
    else:
        folder = Path(which)
        if not folder.is_dir():
            raise ValueError(f"resume: {which} is no folder; give latest, a step or a checkpoint's folder")
    problem = find_problem(folder)
    if problem:
        raise ValueError(f"checkpoint {folder} is damaged: {problem}; choose another, or --resume latest")
    return folder


def set_aside_after(root: Path, step: int) -> list[Path]:
    """Move the checkpoints after this step to `dropped/`; a run that goes back to it leaves them behind.

    Where they stayed they would be the latest, and the run's new ones the first to be removed.
    """
    later = [p for p in list_checkpoints(root) if int(p.name[5:]) > step]
    for folder in later:
        place = Path(root) / DROPPED / folder.name
        place.parent.mkdir(exist_ok=True)
        if place.exists():
            shutil.rmtree(place)
        os.rename(folder, place)
    if later:
        names = ", ".join(p.name for p in later)
        logger.warning("the run goes on at step %d: %s moved to %s", step, names, Path(root) / DROPPED)
    return later


def read_state(folder: Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "state.json").read_text())


def prune(root: Path, keep_last: int, keep: set[str], milestone: Callable[[int], bool]) -> list[Path]:
    """Remove checkpoints but the last few, those named in `keep` and the milestones; what was left of broken writes
    too."""
    folders = list_checkpoints(root)
    removed = []
    for folder in folders[: max(len(folders) - max(keep_last, 1), 0)]:
        step = int(folder.name[5:])
        if folder.name not in keep and not milestone(step):
            _remove(folder)
            removed.append(folder)
    for leftover in Path(root).glob(_WRITING + "*"):
        _remove(leftover)
    return removed


# The disk
# ---------------------------------------------------------------------------------------------------------------


def _remove(folder: Path) -> None:
    """Out of the way at once, then off the disk: a half-removed checkpoint must not look like one."""
    if not folder.exists():
        return
    if not folder.name.startswith("."):
        hidden = folder.with_name(f"{_WRITING}gone-{folder.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(folder, hidden)
        folder = hidden
    shutil.rmtree(folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_about_the_disk(error: Exception) -> bool:
    """Whether writing failed, rather than the program."""
    # torch and safetensors wrap the operating system's error in classes of their own
    text = str(error).lower()
    return isinstance(error, OSError) or any(
        hint in text for hint in ("no space left", "os error", "file write failed", "unexpected pos", "i/o error")
    )


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Say which folder cannot be written where the disk is full; the system's own message does not."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise OSError(f"the disk is full: nothing more can be written to {folder}") from error


def _explain(error: Exception, root: Path, step: int) -> str:
    full = getattr(error, "errno", None) in _FULL or "no space left" in str(error).lower()
    try:
        free = f"{shutil.disk_usage(root).free / 1e9:.2f} GB free"
        full = full or shutil.disk_usage(root).free < 1e6
    except OSError:
        free = "free space unknown"
    reason = f"the disk is full ({free})" if full else f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"the checkpoint of step {step} could not be written to {root}: {reason}"

"""Which maps of RadioMapSeer are for training, validation and test, by three schemes.

| scheme | train | val | test | |
|---|---|---|---|---|
| `corrected` | 502 | 100 | 99 | the default: no map on two sides, map 0 included, test maps those of `radiounet` |
| `radiounet` | 501 | 100 | 99 | RadioUNet's: 0-500, 501-600, 601-699 of a seed-42 shuffle of 0..699, plus 1 |
| `radiodiff` | 601 | 51 | 100 | the original RadioDiff's ranges 0-600, 600-650, 600-699 of the same list |

The two older schemes add 1 to the shuffled numbers, so they never use map 0. `radiodiff` uses one map (289) for
training, validation and test at once, and all its validation maps are test maps, too: it is there to repeat published
figures, not to report new ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

SCHEMES = ("corrected", "radiounet", "radiodiff")
SPLITS = ("train", "val", "test", "all")
LAST_MAP = 700

_RANGES = {
    "radiounet": {"train": (0, 500), "val": (501, 600), "test": (601, 699)},
    "radiodiff": {"train": (0, 600), "val": (600, 650), "test": (600, 699)},
}


def split_maps(split: str, scheme: str = "corrected") -> list[int]:
    """The numbers of RadioMapSeer's maps in one split, in the scheme's own order."""
    _check(split, scheme)
    if split == "all":
        return list(range(LAST_MAP + 1))
    shuffled = np.arange(LAST_MAP, dtype=np.int16)
    np.random.RandomState(42).shuffle(shuffled)  # the generator, and the integer type, that the published splits use
    first, last = _RANGES["radiounet" if scheme == "corrected" else scheme][split]
    maps = [int(k) + 1 for k in shuffled[first : last + 1]]
    return [0, *maps] if scheme == "corrected" and split == "train" else maps


def choose_maps(present: list[int], split: str, scheme: str = "corrected") -> list[int]:
    """Those of `present` that belong to a split.

    Simulated sets may number their maps beyond RadioMapSeer's 700: in `corrected`, of every seven such maps five are
    for training, the next for validation, the last for test, whatever else the folder holds. The older schemes know no
    such maps.
    """
    _check(split, scheme)
    here = set(present)
    if split == "all":
        return sorted(here)
    chosen = [k for k in split_maps(split, scheme) if k in here]
    if scheme == "corrected":
        sides = {"train": range(5), "val": (5,), "test": (6,)}[split]
        chosen += sorted(k for k in here if k > LAST_MAP and k % 7 in sides)
    return chosen


def _check(split: str, scheme: str) -> None:
    if scheme not in SCHEMES:
        raise ValueError(f"unknown split scheme {scheme!r}: use one of {', '.join(SCHEMES)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")


def whole_numbers(values: Any, name: str) -> list[int] | None:
    """Numbers of maps, transmitters and the like as users write them: 3, [3, 4] or "3,4"; `None` stays `None`."""
    if values is None:
        return None
    parts = values.split(",") if isinstance(values, str) else values if isinstance(values, Iterable) else [values]
    try:
        numbers = [int(part) for part in parts]
        if all(isinstance(part, str) or part == number for part, number in zip(parts, numbers, strict=True)):
            return numbers
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name} must be whole numbers, such as [0, 1] or 0,1; got {values!r}")

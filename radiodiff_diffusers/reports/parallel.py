"""One loop over many files on several cores, with a progress bar on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_parallel(
    function: Callable[[Any], Any],
    items: list,
    workers: int | None = None,
    label: str = "",
    weights: Iterable[int] | None = None,
    progress: bool = True,
) -> Iterator[Any]:
    """Yields `function(item)` for every item, in the order of the items.

    Args:
        function (callable): a module-level function, so that it can travel to other processes.
        workers (`int`, *optional*): processes; all cores the process may use where left out, 1 works in this process.
        label (`str`): stands before the bar.
        weights (*optional*): how much each item counts on the bar, images usually; 1 each where left out.
    """
    from tqdm.auto import tqdm

    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}")
    workers = min(workers or available_cores(), len(items)) if items else 1
    counts = list(weights) if weights is not None else [1] * len(items)
    bar = tqdm(total=sum(counts), desc=label, file=sys.stderr, disable=not progress, unit="image", dynamic_ncols=True)
    with bar:
        if workers <= 1:
            for item, count in zip(items, counts, strict=True):
                result = function(item)
                bar.update(count)
                yield result
            return
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # not forked: a fork of a process whose threads (torch's, OpenMP's) hold locks can hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, _single_threaded) as pool:
            for result, count in zip(pool.map(function, items), counts, strict=True):
                bar.update(count)
                yield result


def _single_threaded() -> None:
    """The processes share the cores already; threads on top of them only get in each other's way."""
    import cv2

    cv2.setNumThreads(1)


def read_gray(path: Any) -> Any:
    """One image as (H, W) uint8; `OSError` for whatever cannot be read, so that callers have one thing to catch."""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image if image.mode == "L" else image.convert("L"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{path}: {error}") from None

"""How a run's validation pictures developed: the first five and the last five, and what changed between them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from . import style
from .run_log import RunLog

AT_EACH_END = 5
PICTURES = (".png", ".jpg", ".jpeg")


def validation_pictures(run: RunLog) -> tuple[list[tuple[str, Path]], list[str]]:
    """(title, file) of every validation picture in order, and the names of those that are missing or broken.

    From the log's validation events; where it names none, from files `validation/step_*.png` or `sample-*.png`, as the
    original writes them.
    """
    listed = []
    for row in sorted(run.validations, key=lambda row: row["step"]):
        names = row.get("images")
        for name in [names] if isinstance(names, str) else names or []:
            listed.append((f"step {int(row['step']):,}", run.path / name))
    if not listed:
        found = [*run.path.glob("validation/*.png"), *run.path.glob("sample-*.png")]
        numbered = [(number, path) for path in found if (number := _last_number(path.stem)) is not None]
        for number, path in sorted(numbered):
            listed.append((f"step {number:,}" if path.parent.name == "validation" else f"sample {number}", path))
    good, bad = [], []
    for title, path in listed:
        if path.suffix.lower() in PICTURES and _readable(path):
            good.append((title, path))
        else:
            bad.append(path.name)
    return good, bad


def draw_development(run: RunLog, pictures: list[tuple[str, Path]], path: Path) -> Path:
    """First five above, last five below; under each the change from the picture before it, in gray levels."""
    first = pictures[:AT_EACH_END]
    last = pictures[-AT_EACH_END:] if len(pictures) > AT_EACH_END else []
    # Pictures shown twice would make ten out of six: the lower rows begin where the upper ones end.
    last = last[max(0, 2 * AT_EACH_END - len(pictures)) :] if last else []
    groups = [group for group in (first, last) if group]
    columns = max(len(group) for group in groups)
    planes = {path_: _gray(path_) for _, path_ in pictures[-AT_EACH_END - 1 :] + first}
    height, width = next(iter(planes.values())).shape
    cell = 2.7
    tall = min(max(cell * height / width, 0.8), 4.5)
    size = (cell * columns + 0.9, (tall + 0.33) * 2 * len(groups) + 0.6)
    before = {path_: previous for (_, previous), (_, path_) in zip(pictures, pictures[1:], strict=False)}
    limit = _change_limit(planes, before)
    title = f"{run.name}: how the validation pictures developed"
    with style.drawing(2 * len(groups), columns, size, title) as (figure, grid):
        mappable = None
        for i, group in enumerate(groups):
            for j in range(columns):
                upper, lower = grid[2 * i, j], grid[2 * i + 1, j]
                if j >= len(group):
                    upper.set_axis_off()
                    lower.set_axis_off()
                    continue
                text, file = group[j]
                upper.imshow(planes[file], cmap="gray", vmin=0, vmax=255)
                style.finish_map(upper, text, planes[file].shape)
                older = planes.get(before.get(file, file))
                if file in before and older is not None and older.shape == planes[file].shape:
                    change = planes[file] - older
                    mappable = lower.imshow(change, cmap=style.ERROR_COLOURS, vmin=-limit, vmax=limit)
                    style.finish_map(lower, f"change, mean {np.abs(change).mean():.1f}", change.shape)
                else:
                    style.message(lower, "nothing before it\nof the same size")
        if mappable is not None:
            figure.colorbar(
                mappable, ax=grid, label="change since the picture before [gray levels]", shrink=0.6, extend="both"
            )
        return style.save(figure, path)


def change_table(pictures: list[tuple[str, Path]]) -> list[tuple[str, str, float]]:
    """Mean absolute change in gray levels between neighbouring pictures of the first and last five."""
    rows = []
    chosen = {file for _, file in pictures[:AT_EACH_END] + pictures[-AT_EACH_END:]}
    for (older, a), (newer, b) in zip(pictures, pictures[1:], strict=False):
        if b in chosen:
            x, y = _gray(a), _gray(b)
            if x.shape == y.shape:
                rows.append((older, newer, float(np.abs(x - y).mean())))
    return rows


def _change_limit(planes: dict[Path, np.ndarray], before: dict[Path, Path]) -> float:
    changes = [
        np.abs(planes[file] - planes[older])
        for file, older in before.items()
        if file in planes and older in planes and planes[file].shape == planes[older].shape
    ]
    return max(float(np.quantile(np.concatenate([c.ravel() for c in changes]), 0.995)), 4.0) if changes else 64.0


def _gray(path: Path) -> np.ndarray:
    """Gray levels as floats, at most 1024 pixels on the longer side: a report is not an archive."""
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("L")
        image.thumbnail((1024, 1024))
        return np.asarray(image, np.float32)


def _readable(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
        return True
    except (OSError, SyntaxError, ValueError):
        return False


def _last_number(text: str) -> int | None:
    numbers = re.findall(r"\d+", text)
    return int(numbers[-1]) if numbers else None

"""Maps in tiles: a large one is cut into pieces that overlap, and their pictures are blended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Tile:
    """A part of a map, and how far its neighbours reach into it at the top, bottom, left and right."""

    top: int
    left: int
    height: int
    width: int
    shared: tuple[int, int, int, int]

    @property
    def window(self) -> tuple[Any, ...]:
        return (..., slice(self.top, self.top + self.height), slice(self.left, self.left + self.width))

    def scaled(self, factor: int) -> Tile:
        parts = (self.top, self.left, self.height, self.width)
        return Tile(*(v // factor for v in parts), tuple(v // factor for v in self.shared))

    def weight(self) -> torch.Tensor:
        """1 in the middle, falling to 0 over what the neighbours share, so that blended tiles show no seam."""
        down = _ramp(self.height, self.shared[0], self.shared[1])
        across = _ramp(self.width, self.shared[2], self.shared[3])
        return down[:, None] * across[None, :]


def blended(tiles: list[Tile], parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """One picture from those of the tiles."""
    if len(tiles) == 1:
        return next(iter(parts)).float().cpu()
    height, width = tiles[-1].top + tiles[-1].height, tiles[-1].left + tiles[-1].width
    weights = torch.zeros(height, width)
    total = None
    for tile, part in zip(tiles, parts, strict=True):
        if total is None:
            total = torch.zeros(*part.shape[:2], height, width)
        weight = tile.weight()
        total[tile.window] += part.float().cpu() * weight
        weights[tile.window[-2:]] += weight
    return total / weights


def _ramp(length: int, before: int, after: int) -> torch.Tensor:
    at = torch.arange(length, dtype=torch.float32) + 0.5
    rise = torch.ones(length) if before == 0 else (at / before).clamp(max=1)
    fall = torch.ones(length) if after == 0 else ((length - at) / after).clamp(max=1)
    smooth = torch.minimum(rise, fall)
    return smooth * smooth * (3 - 2 * smooth)


def cut(height: int, width: int, side: int | None, overlap: int | None, factor: int) -> list[Tile]:
    """Tiles of at most `side` pixels a side that cover a map and share `overlap` pixels at least (a quarter of a side
    where left out), on multiples of `factor`, by which the last ones may reach beyond the map."""
    height, width = height + -height % factor, width + -width % factor
    if side is None or (height <= side and width <= side):
        return [Tile(0, 0, height, width, (0, 0, 0, 0))]
    side = max(side // factor, 1) * factor
    overlap = side // 4 if overlap is None else overlap
    rows = _spans(height, side, overlap, factor)
    columns = _spans(width, side, overlap, factor)
    return [
        Tile(top, left, bottom - top, right - left, (above, below, before, after))
        for top, bottom, above, below in rows
        for left, right, before, after in columns
    ]


def _spans(length: int, side: int, overlap: int, factor: int) -> list[tuple[int, int, int, int]]:
    """Evenly spread pieces `(start, stop, shared before, shared after)` of one side, on multiples of `factor`."""
    if length <= side:
        return [(0, length, 0, 0)]
    count = -(-(length - overlap) // (side - overlap))
    starts = [round(i * (length - side) / (count - 1) / factor) * factor for i in range(count)]
    spans = []
    for i, start in enumerate(starts):
        before = starts[i - 1] + side - start if i else 0
        after = start + side - starts[i + 1] if i + 1 < count else 0
        spans.append((start, start + side, before, after))
    return spans

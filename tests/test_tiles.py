"""Tiles of a map: they cover it, and blended they show no seam."""

import pytest
import torch

from radiodiff_diffusers.pipelines.tiles import blended, cut


@pytest.mark.parametrize(
    ("size", "side", "overlap", "factor"),
    [((64, 64), None, None, 1), ((100, 70), 32, None, 1), ((101, 67), 32, 16, 4), ((40, 300), 48, 0, 8)],
)
def test_tiles_cover_a_map_and_blend_into_it(size, side, overlap, factor):
    height, width = (length + -length % factor for length in size)
    picture = torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(0))
    tiles = cut(*size, side, overlap, factor)
    for tile in tiles:
        parts = (tile.top, tile.left, tile.height, tile.width)
        assert all(part % factor == 0 for part in parts)
        assert side is None or max(tile.height, tile.width) <= side
    torch.testing.assert_close(blended(tiles, (picture[tile.window] for tile in tiles)), picture)


def test_neighbours_share_what_was_asked_and_fade_into_each_other():
    first, second = cut(16, 40, 24, 8, 1)
    assert (first.left, second.left) == (0, 16) and first.shared[3] == second.shared[2] == 8
    parts = [torch.zeros(1, 1, 16, 24), torch.ones(1, 1, 16, 24)]
    row = blended([first, second], parts)[0, 0, 0]
    assert row[:16].max() == 0 and row[24:].min() == 1 and (row.diff() >= 0).all() and row.diff().max() < 0.3

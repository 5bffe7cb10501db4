"""From (`Scene`, `RadioMap`) pairs to the tensors that networks train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..channels import write_planes
from ..scene import RadioMap, Scene

if TYPE_CHECKING:
    import torch


def collate(
    batch: Sequence[tuple[Scene, RadioMap]], condition_channels: Sequence[str]
) -> dict[str, torch.Tensor | list[Any]]:
    """A batch for training: `DataLoader(data, 16, collate_fn=partial(collate, condition_channels=[...]))`.

    Returns:
        `{"condition": (B, C, H, W), "target": (B, 1, H, W), "scale": [GainScale], "name": [str]}`, tensors float32 in
        [-1, 1]. With channels buildings, transmitter, buildings this is what the original RadioDiff's plain loader
        feeds.
    """
    import torch

    shapes = {scene.shape for scene, _ in batch}
    if len(shapes) > 1:
        sizes = ", ".join(f"{w} x {h}" for h, w in sorted(shapes))
        raise ValueError(
            f"one batch holds maps of several sizes ({sizes}): crop them to one size, or use a batch size of 1"
        )
    height, width = shapes.pop()
    condition = torch.empty(len(batch), len(condition_channels), height, width)
    target = torch.empty(len(batch), 1, height, width)
    for (scene, radio_map), planes, unit in zip(batch, condition.numpy(), target.numpy(), strict=True):
        write_planes(scene, condition_channels, planes)
        radio_map.scale.to_unit(radio_map.gain_db, out=unit[0])
    return {
        "condition": condition,
        "target": target,
        "scale": [radio_map.scale for _, radio_map in batch],
        "name": [scene.name for scene, _ in batch],
    }

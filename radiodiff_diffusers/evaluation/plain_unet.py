"""A plain U-Net that regresses the map from the condition channels: the baseline without diffusion."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config

from ..channels import check_channels, condition_planes
from ..scene import GainScale, RadioMap, Scene


class PlainUNet(ModelMixin, ConfigMixin):
    """
    diffusers' UNet2DModel from condition planes to the map, in one pass. Saved and loaded like any diffusers model.

    Args:
        condition_channels (`list[str]`): What it sees, by name.
        block_out_channels (`list[int]`, defaults to `[32, 64, 128, 128]`): The width of each level.
        layers_per_block (`int`, defaults to 2): Residual blocks a level.
        patch_size (`int`, defaults to 1): Folds so many pixels a side into channels, which makes large maps cheap.
        attention (`bool`, defaults to `False`): Attention on the coarsest level.
        norm_num_groups (`int`, defaults to 8): Groups of the normalisations.
    """

    @register_to_config
    def __init__(
        self,
        condition_channels: list[str] = ("buildings", "transmitter", "visibility", "obstruction", "log_distance"),
        block_out_channels: list[int] = (32, 64, 128, 128),
        layers_per_block: int = 2,
        patch_size: int = 1,
        attention: bool = False,
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        check_channels(condition_channels)
        levels = len(block_out_channels)
        self.stride = patch_size * 2 ** (levels - 1)
        self.unet = UNet2DModel(
            in_channels=len(condition_channels) * patch_size**2,
            out_channels=patch_size**2,
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D" if attention else "DownBlock2D",),
            up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D",) + ("UpBlock2D",) * (levels - 1),
            add_attention=attention,
        )

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        """Maps in about [-1, 1], `(batch, 1, height, width)`, of condition planes of any size."""
        height, width = condition.shape[-2:]
        planes = F.pad(condition, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        folded = F.pixel_unshuffle(planes, self.config.patch_size)
        folded = self.unet(folded, 0, return_dict=False)[0]  # the time, which a regression has not, stays 0
        return F.pixel_shuffle(folded, self.config.patch_size)[..., :height, :width]

    @torch.no_grad()
    def predict(self, scenes: list[Scene]) -> list[RadioMap]:
        """The maps of scenes; scenes of one size go through in one batch."""
        maps: list[RadioMap | None] = [None] * len(scenes)
        scale = GainScale.RADIOMAPSEER
        for shape in {scene.shape for scene in scenes}:
            rows = [i for i, scene in enumerate(scenes) if scene.shape == shape]
            planes = [torch.from_numpy(condition_planes(scenes[i], self.config.condition_channels)) for i in rows]
            units = self(torch.stack(planes).to(self.device, self.dtype)).float().cpu().numpy()
            for i, unit in zip(rows, units, strict=True):
                gain = scale.from_unit(unit[0])
                gain[scenes[i].footprint] = scale.floor_db
                maps[i] = RadioMap(gain, scale=scale, metres_per_pixel=scenes[i].metres_per_pixel)
        return maps

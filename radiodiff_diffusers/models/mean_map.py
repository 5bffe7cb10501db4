"""A small network that gives a scene's mean map at once: one step of diffusion from an empty start, distilled."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from .radiodiff_unet import check_channel_names

# A loss plane reads 0 dB beyond 1 m at -1 and 160 dB at 1; a map -147 dB at -1 and -47.84 dB at 1.
LOSS_RANGE, GAIN_AT_ONE_METRE, GAIN_MIDDLE, GAIN_HALF_RANGE = 160.0, -47.85, -97.42, 49.58


class MeanMapModel(ModelMixin, ConfigMixin):
    """
    From a scene's planes to its map, in one pass and without a time: a U-Net of three levels that corrects the map
    which one of the planes, a loss by physics, stands for.

    Args:
        condition_channels (`list[str]`): The planes it sees, in order (see `radiodiff_diffusers.channels`).
        physics_channel (`str`, defaults to `"detour_loss"`): Which of them is the loss that it corrects.
        patch_size (`int`, defaults to 4): Pixels a side that are folded into channels.
        widths (`list[int]`, defaults to `[16, 32, 64]`): Channels of the three levels.
        error_map (`bool`, defaults to `False`): It also says how wrong the map may be (`return_error`).
        second_look (`str`, *optional*): One more plane, a loss by another way of computing it, that only the error map
            needs: where both ways differ, neither is to be trusted.
        conv_in_kernel (`int`, defaults to 3): How many patches the first layer sees at once, a side; 1 costs least.
    """

    @register_to_config
    def __init__(
        self,
        condition_channels: list[str] = ("footprint", "detour_loss", "detour_turn", "log_distance"),
        physics_channel: str = "detour_loss",
        patch_size: int = 4,
        widths: list[int] = (16, 32, 64),
        error_map: bool = False,
        second_look: str | None = None,
        conv_in_kernel: int = 3,
    ):
        super().__init__()
        check_channel_names([*condition_channels, *([second_look] if second_look else [])])
        if physics_channel not in condition_channels:
            raise ValueError(f"physics_channel {physics_channel!r} is none of {', '.join(condition_channels)}")
        if conv_in_kernel < 1 or conv_in_kernel % 2 == 0:
            raise ValueError(f"expected an odd conv_in_kernel from 1; got {conv_in_kernel}")
        if patch_size < 1 or len(widths) != 3:
            raise ValueError(f"expected a patch_size from 1 and three widths; got {patch_size} and {list(widths)}")
        folded = patch_size**2
        fine, middle, deep = widths
        self.conv_in = nn.Conv2d(len(condition_channels) * folded, fine, conv_in_kernel, padding=conv_in_kernel // 2)
        self.down1 = nn.Conv2d(fine, middle, 2, stride=2)
        self.block1 = Block(middle)
        self.down2 = nn.Conv2d(middle, deep, 2, stride=2)
        self.block2 = nn.Sequential(Block(deep), Block(deep))
        self.up2 = nn.Conv2d(deep, middle, 1)
        self.block3 = Block(middle)
        self.up1 = nn.Conv2d(middle, fine, 1)
        self.block4 = Block(fine)
        self.norm_out = nn.GroupNorm(8, fine)
        self.conv_out = nn.Conv2d(fine, folded, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # a fresh model says what the physics say
        nn.init.zeros_(self.conv_out.bias)
        if error_map:
            seen = fine + folded if second_look else fine
            self.error_head = nn.Sequential(
                nn.Conv2d(seen, fine, 3, padding=1), nn.SiLU(), nn.Conv2d(fine, folded, 3, padding=1)
            )

    @property
    def error_channels(self) -> list[str]:
        """The planes it sees where it is asked for its error, in order."""
        second = self.config.second_look
        return [*self.config.condition_channels, *([second] if second else [])]

    def forward(
        self, planes: torch.Tensor, return_error: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        The map of every scene of a batch.

        Args:
            planes (`torch.Tensor` of shape `(batch, channels, height, width)`): The planes of
                `config.condition_channels` (with `return_error` of `error_channels`), in [-1, 1].
            return_error (`bool`, defaults to `False`): Of a model with `error_map`: also give the scale of the map's
                error, a Student distribution's with two degrees of freedom.

        Returns:
            `torch.Tensor` of shape `(batch, 1, height, width)`: the gain, in [-1, 1] where the model is sure to be on
            the scale; with `return_error` a tuple of it and of its error.
        """
        if return_error and not self.config.error_map:
            raise ValueError("return_error is for models whose config has error_map")
        names = self.error_channels if return_error else self.config.condition_channels
        if planes.ndim != 4 or planes.shape[1] != len(names):
            raise ValueError(
                f"the planes have shape {tuple(planes.shape)}; this model takes (batch, {len(names)}, height, width), "
                f"the planes being {', '.join(names)}"
            )
        height, width = planes.shape[-2:]
        physics = _map_of(planes[:, names.index(self.config.physics_channel)][:, None])
        second = planes[:, -1:] if return_error and self.config.second_look else None
        planes = planes[:, : len(self.config.condition_channels)]

        patch = self.config.patch_size
        side = 4 * patch  # of what the deepest level counts as one

        def folded(x: torch.Tensor) -> torch.Tensor:
            x = F.pad(x.to(self.conv_in.weight.dtype), (0, -width % side, 0, -height % side), mode="replicate")
            batch, channels, rows, columns = x.shape
            x = x.view(batch, channels, rows // patch, patch, columns // patch, patch).permute(0, 2, 4, 1, 3, 5)
            return x.flatten(3).permute(0, 3, 1, 2)  # pixel_unshuffle, into channels_last at once

        def unfolded(x: torch.Tensor) -> torch.Tensor:
            return F.pixel_shuffle(x, patch)[..., :height, :width].float()

        fine = self.conv_in(folded(planes))
        middle = self.block1(self.down1(fine))
        deep = self.block2(self.down2(middle))
        middle = self.block3(middle + F.interpolate(self.up2(deep), scale_factor=2.0))
        fine = self.block4(fine + F.interpolate(self.up1(middle), scale_factor=2.0))
        fine = F.silu(self.norm_out(fine))

        gain = physics + unfolded(self.conv_out(fine))
        if not return_error:
            return gain
        if second is not None:
            apart = (gain.detach() - _map_of(second)).abs().sqrt()  # small differences count, too
            fine = torch.cat([fine, folded(apart)], dim=1)
        return gain, unfolded(self.error_head(fine)).exp()


def _map_of(loss: torch.Tensor) -> torch.Tensor:
    """The map, in [-1, 1], that a plane of losses stands for."""
    gain = GAIN_AT_ONE_METRE - LOSS_RANGE / 2 * (loss.float() + 1)
    return ((gain - GAIN_MIDDLE) / GAIN_HALF_RANGE).clamp(-1, 1)


class Block(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))

"""Condition encoders: planes of a scene in, four feature maps out, the finest first.

`swin`, `resnet`, `effnet` and `vgg` are the published RadioDiff's choices, built from torchvision; `conv` is a light
strided pyramid for small models. None of them loads pretrained weights.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from .radiodiff_blocks import Recomputing, attend


class ConditionFeatures(list):
    """
    The feature maps of one or several conditions, finest first: a list of four tensors of shape
    `(batch, channels, height, width)`.

    What [`RadioDiffUNet2DModel.encode_condition`] returns also carries, in `prepared`, everything the U-Net derives
    from the condition alone, so that it is computed once a map and not once a step. It belongs to the weights the
    features were made with: encode again after changing them. `planes` is the condition itself, for models whose
    output sees it at full resolution. A plain list of tensors may be used in place of this class by models that do
    not.
    """

    def __init__(self, features=(), prepared=None, planes=None):
        super().__init__(features)
        self.prepared = prepared
        self.planes = planes

    def repeat_interleave(self, repeats: int) -> "ConditionFeatures":
        """Every condition `repeats` times in a row, to draw several samples of each."""
        return self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def __getitem__(self, index):
        return (
            ConditionFeatures(super().__getitem__(index)) if isinstance(index, slice) else super().__getitem__(index)
        )

    def _map(self, function) -> "ConditionFeatures":
        features, prepared, planes = (
            _map_tensors(function, part) for part in (list(self), self.prepared, self.planes)
        )
        return ConditionFeatures(features, prepared, planes)


def _map_tensors(function, value):
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(function, item) for item in value)
    return value


class WindowAttention(Recomputing):
    """
    Self-attention within shifted windows (Swin Transformer, arXiv:2103.14030). The parameters are torchvision's
    `ShiftedWindowAttention`'s; the attention itself is one call of PyTorch's fused kernel.
    """

    def __init__(self, dim, window_size, shift_size, num_heads, attention_dropout=0.0, dropout=0.0):
        super().__init__()
        self.window_size, self.shift_size, self.num_heads = list(window_size), list(shift_size), num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        height, width = self.window_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1), num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = hidden_states.shape
        window_h, window_w = self.window_size
        x = F.pad(hidden_states, (0, 0, 0, -width % window_w, 0, -height % window_h))
        padded_h, padded_w = x.shape[1:3]
        # a window that covers the whole map has nowhere to shift
        shift_h = self.shift_size[0] if window_h < padded_h else 0
        shift_w = self.shift_size[1] if window_w < padded_w else 0
        if shift_h or shift_w:
            x = torch.roll(x, shifts=(-shift_h, -shift_w), dims=(1, 2))

        rows, columns = padded_h // window_h, padded_w // window_w
        x = x.view(batch, rows, window_h, columns, window_w, channels).transpose(2, 3)
        x = x.reshape(batch * rows * columns, window_h * window_w, channels)

        def attend_within(qkv):
            query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            bias = self._position_bias().to(query.dtype)
            if shift_h or shift_w:
                mask = self._shift_mask(rows, columns, shift_h, shift_w, x.device).to(query.dtype)
                bias = (bias + mask[:, None]).repeat(batch, 1, 1, 1)
            return attend(query, key, value, bias, scale=query.shape[-1] ** -0.5)

        attended = self.recompute(attend_within, self.qkv(x), size=3 * x.numel())
        x = self.proj(attended.transpose(1, 2).flatten(2))

        x = x.view(batch, rows, columns, window_h, window_w, channels).transpose(2, 3)
        x = x.reshape(batch, padded_h, padded_w, channels)
        if shift_h or shift_w:
            x = torch.roll(x, shifts=(shift_h, shift_w), dims=(1, 2))
        return x[:, :height, :width]

    def relative_position_index(self) -> torch.Tensor:
        """For every pair of pixels in a window the row of the bias table that belongs to their offset."""
        height, width = self.window_size
        device = self.relative_position_bias_table.device
        y = torch.arange(height, device=device).repeat_interleave(width)
        x = torch.arange(width, device=device).repeat(height)
        offset_y = y[:, None] - y[None, :] + height - 1
        offset_x = x[:, None] - x[None, :] + width - 1
        return offset_y * (2 * width - 1) + offset_x

    def _position_bias(self) -> torch.Tensor:
        """The learned bias of every pair of pixels in a window, `(1, heads, pixels, pixels)`."""
        return self.relative_position_bias_table[self.relative_position_index()].permute(2, 0, 1)[None]

    def _shift_mask(self, rows, columns, shift_h, shift_w, device) -> torch.Tensor:
        """-100 between pixels that only meet in a window because the map was rolled, `(windows, pixels, pixels)`."""
        window_h, window_w = self.window_size
        y = torch.arange(rows * window_h, device=device)
        x = torch.arange(columns * window_w, device=device)
        # the three bands of the rolled map: whole windows, the rest of the last one, and what came from the other side
        band_y = (y >= (rows - 1) * window_h).int() + (y >= rows * window_h - shift_h).int() * bool(shift_h)
        band_x = (x >= (columns - 1) * window_w).int() + (x >= columns * window_w - shift_w).int() * bool(shift_w)
        region = 3 * band_y[:, None] + band_x[None, :]
        region = region.view(rows, window_h, columns, window_w).transpose(1, 2).reshape(rows * columns, -1)
        return (region[:, :, None] != region[:, None, :]) * -100.0


class RecomputedMLP(nn.Sequential, Recomputing):
    """Linear layers, the first of which widens; what is wide between them is not kept for the backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.recompute(super().forward, x, size=4 * x.numel())


class SwinConditionEncoder(nn.Module):
    """A Swin Transformer without classification head; the features are taken after each of its four stages."""

    def __init__(
        self,
        in_channels: int = 3,
        embed_dim: int = 128,
        depths: tuple[int, ...] = (2, 2, 18, 2),
        num_heads: tuple[int, ...] = (4, 8, 16, 32),
        window_size: int = 7,
        stochastic_depth_prob: float = 0.5,
    ):
        super().__init__()
        from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlock

        swin = SwinTransformer(
            patch_size=[4, 4],
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=list(num_heads),
            window_size=[window_size, window_size],
            stochastic_depth_prob=stochastic_depth_prob,
            num_classes=1,
            block=partial(SwinTransformerBlock, attn_layer=WindowAttention),
        )
        self.patch_embed = swin.features[0]
        if in_channels != 3:
            self.patch_embed[0] = nn.Conv2d(in_channels, embed_dim, kernel_size=4, stride=4)
        self.stages = nn.ModuleList(swin.features[1::2])
        for stage in self.stages:
            for block in stage:
                block.mlp = RecomputedMLP(*block.mlp)
        self.merges = nn.ModuleList(swin.features[2::2])
        self.out_channels = [embed_dim * 2**stage for stage in range(len(depths))]
        self.gradient_checkpointing = False

    def forward(self, condition: torch.Tensor) -> list[torch.Tensor]:
        x = self.patch_embed(condition)
        features = []
        for index, stage in enumerate(self.stages):
            if index:
                x = self.merges[index - 1](x)
            for block in stage:
                if torch.is_grad_enabled() and self.gradient_checkpointing:
                    x = self._gradient_checkpointing_func(block, x)
                else:
                    x = block(x)
            features.append(x.permute(0, 3, 1, 2).contiguous())
        return features


class ResNetConditionEncoder(nn.Module):
    """ResNet-101 without its classifier; the features are its four stages'."""

    def __init__(self, in_channels: int = 3):
        super().__init__()
        from torchvision.models import resnet101

        resnet = resnet101(weights=None, num_classes=1)
        self.conv1, self.bn1 = resnet.conv1, resnet.bn1
        if in_channels != 3:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        for stage in range(1, 5):
            setattr(self, f"layer{stage}", getattr(resnet, f"layer{stage}"))
        self.out_channels = [256, 512, 1024, 2048]

    def forward(self, condition: torch.Tensor) -> list[torch.Tensor]:
        x = F.relu(self.bn1(self.conv1(condition)))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


class _TappedEncoder(nn.Module):
    """A chain of layers with the outputs of some of them as features."""

    taps: tuple[int, ...]

    def __init__(self, layers: nn.ModuleList, out_channels: list[int]):
        super().__init__()
        self.features = layers
        self.out_channels = out_channels

    def forward(self, condition: torch.Tensor) -> list[torch.Tensor]:
        x, features = condition, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                features.append(x)
        return features


class EfficientNetConditionEncoder(_TappedEncoder):
    """EfficientNet-B7 up to its last used stage; the features have strides 4, 8, 16 and 32."""

    taps = (2, 3, 5, 7)

    def __init__(self, in_channels: int = 3):
        from torchvision.models import efficientnet_b7

        layers = nn.ModuleList(efficientnet_b7(weights=None, num_classes=1).features[:8])
        if in_channels != 3:
            stem = layers[0][0]
            layers[0][0] = nn.Conv2d(in_channels, stem.out_channels, 3, stride=2, padding=1, bias=False)
        super().__init__(layers, [48, 80, 224, 640])


class VGGConditionEncoder(_TappedEncoder):
    """VGG-16's convolutions; the features follow four of its five poolings, with strides 4, 8, 16 and 32."""

    taps = (9, 16, 23, 30)

    def __init__(self, in_channels: int = 3):
        from torchvision.models import vgg16

        layers = nn.ModuleList(vgg16(weights=None, num_classes=1, init_weights=False).features)
        if in_channels != 3:
            layers[0] = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1)
        for layer in layers:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # gradient checkpointing and the taps want their inputs untouched
        super().__init__(layers, [128, 256, 512, 512])


class ConvConditionEncoder(nn.Module):
    """
    A small convolutional pyramid. The first level folds `stride x stride` pixels into channels, so nothing of the
    condition is lost before the first convolution; each further level halves the size and doubles the width.
    """

    def __init__(self, in_channels: int = 3, width: int = 32, stride: int = 4, max_width: int = 256):
        super().__init__()
        self.stride = stride
        self.out_channels = [min(width * 2**level, max_width) for level in range(4)]
        self.levels = nn.ModuleList()
        previous = in_channels * stride**2
        for level, channels in enumerate(self.out_channels):
            first = nn.Conv2d(previous, channels, 3, padding=1, stride=1 if level == 0 else 2)
            self.levels.append(
                nn.Sequential(
                    first,
                    nn.GroupNorm(_groups(channels), channels),
                    nn.SiLU(),
                    nn.Conv2d(channels, channels, 3, padding=1),
                    nn.GroupNorm(_groups(channels), channels),
                    nn.SiLU(),
                )
            )
            previous = channels

    def forward(self, condition: torch.Tensor) -> list[torch.Tensor]:
        height, width = condition.shape[-2:]
        # a border that is no multiple of the stride is continued with its last pixel
        x = F.pad(condition, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        x = F.pixel_unshuffle(x, self.stride)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


def _groups(channels: int) -> int:
    # at least two channels a group: a map of one pixel has something to be normalised then
    return max(group for group in range(1, 9) if channels % group == 0 and 2 * group <= channels)


CONDITION_ENCODERS = {
    "swin": SwinConditionEncoder,
    "resnet": ResNetConditionEncoder,
    "effnet": EfficientNetConditionEncoder,
    "vgg": VGGConditionEncoder,
    "conv": ConvConditionEncoder,
}


def make_condition_encoder(name: str, in_channels: int, **kwargs) -> nn.Module:
    """The condition encoder of that name, untrained, for `in_channels` planes."""
    if name not in CONDITION_ENCODERS:
        raise ValueError(f"condition_encoder is {name!r}; choose one of {', '.join(CONDITION_ENCODERS)}.")
    try:
        return CONDITION_ENCODERS[name](in_channels=in_channels, **kwargs)
    except TypeError as error:
        raise ValueError(f"condition_encoder_config does not fit the {name!r} encoder: {error}.") from error

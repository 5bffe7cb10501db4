"""RadioDiff's U-Net: from a noisy sample, a time and a condition to drift and noise."""

import logging
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

from ..memory import return_free_memory
from .condition_encoder import CONDITION_ENCODERS, ConditionFeatures, make_condition_encoder
from .radiodiff_blocks import (
    ConditionAttention,
    FourierFilter,
    LinearAttention,
    MidAttention,
    ResnetBlock,
    TimeEmbedding,
    checkpointed,
)

DETAIL_FEATURES = 8  # feature planes that reach the full-resolution output layers
HALF_PRECISIONS = (torch.float16, torch.bfloat16)


@dataclass
class RadioDiffUNet2DOutput(BaseOutput):
    """
    Output of [`RadioDiffUNet2DModel`].

    Args:
        sample (`torch.Tensor` of shape `(batch, 2 * in_channels, height, width)`):
            The predicted drift and, after it, the predicted noise.
        error (`torch.Tensor` of shape `(batch, in_channels, height, width)`, *optional*):
            The scale of the error of the map that a single step gives, where it was asked for.
    """

    sample: torch.Tensor
    error: torch.Tensor | None = None


class DownBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_channels: int, attention: dict, relation: dict, last):
        super().__init__()
        self.resnet1 = ResnetBlock(in_channels, in_channels, time_channels)
        self.relation = ConditionAttention(in_channels, in_channels, in_channels, **relation)
        self.resnet2 = ResnetBlock(in_channels, in_channels, time_channels)
        self.attention = LinearAttention(in_channels, **attention)
        self.last = last
        if last:
            self.downsample = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        else:
            self.downsample = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, x, time_embedding, prepared):
        skip1 = x = self.resnet1(x, time_embedding)
        x = self.relation(x, prepared)
        x = self.resnet2(x, time_embedding)
        skip2 = x = self.attention(x)
        if not self.last:  # an odd side is made even by repeating its last line; the way up cuts it off again
            height, width = x.shape[-2:]
            if height % 2 or width % 2:
                x = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        return self.downsample(x), skip1, skip2


class MidBlock(nn.Module):
    def __init__(self, channels: int, time_channels: int, attention: dict):
        super().__init__()
        self.resnet1 = ResnetBlock(channels, channels, time_channels)
        self.attention = MidAttention(channels, **attention)
        self.resnet2 = ResnetBlock(channels, channels, time_channels)

    def forward(self, x, time_embedding):
        x = self.resnet1(x, time_embedding)
        return self.resnet2(self.attention(x), time_embedding)


class UpBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, time_channels: int, attention: dict, relation: dict, last):
        super().__init__()
        joined = in_channels + out_channels  # the skip connections are as wide as the level below
        self.resnet1 = ResnetBlock(joined, in_channels, time_channels)
        self.relation = ConditionAttention(out_channels, in_channels, in_channels, **relation)
        self.resnet2 = ResnetBlock(joined, in_channels, time_channels)
        self.attention = LinearAttention(in_channels, **attention)
        self.last = last
        self.upsample = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x, skip1, skip2, time_embedding, prepared):
        height, width = skip1.shape[-2:]
        x = x[..., :height, :width]
        x = self.resnet1(torch.cat([x, skip2], dim=1), time_embedding)
        x = self.relation(x, prepared)
        x = self.resnet2(torch.cat([x, skip1], dim=1), time_embedding)
        x = self.attention(x)
        if not self.last:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.upsample(x)


class Decoder(nn.Module):
    """One of the two ways up: the Fourier filter, the up blocks, and the output convolution."""

    def __init__(
        self, widths, out_channels, time_channels, attention, relations, filter_size, patch_size, detail=None
    ):
        super().__init__()
        deepest = widths[-1]
        self.filter_norm = nn.GroupNorm(min(deepest // 4, 8), deepest)
        self.filter_conv = nn.Conv2d(deepest, deepest, 3, padding=1)
        self.filter = FourierFilter(deepest, filter_size)
        levels = len(widths) - 1
        self.up_blocks = nn.ModuleList(
            UpBlock(widths[i + 1], widths[i], time_channels, attention, relations[i], last=i == 0)
            for i in reversed(range(levels))
        )
        self.resnet_out = ResnetBlock(2 * widths[0], widths[0], time_channels)
        self.patch_size = patch_size
        folded = (out_channels if detail is None else detail["features"]) * patch_size**2
        self.conv_out = nn.Conv2d(widths[0], folded, 1)
        self.detail = None if detail is None else DetailHead(out_channels=out_channels, **detail)

    def unfold(self, x, sample, planes):
        """From the network's resolution back to the sample's."""
        x = self.conv_out(x)
        if self.patch_size > 1:
            height, width = sample.shape[-2:]
            x = F.pixel_shuffle(x, self.patch_size)[..., :height, :width]
        return x if self.detail is None else self.detail(x, sample, planes)


class DetailHead(nn.Module):
    """Output layers at full resolution; they see the condition's planes and the sample once more: edges stay sharp."""

    def __init__(self, features: int, width: int, planes: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features + planes + out_channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(planes, out_channels, 1)

    def forward(self, x, sample, planes):
        return self.conv2(F.silu(self.conv1(torch.cat([x, planes, sample], dim=1)))) + self.skip(planes)


class RadioDiffUNet2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    r"""
    A U-Net that predicts drift and noise of a noisy sample (see [`ConstSDEScheduler`]) given planes of a scene. The
    planes go through a condition encoder once; cross-attention at every level brings them to the sample. The two
    predictions share the way down and have a way up each.

    Sample and condition may have any height and width. The model was trained at `sample_size`; at other sizes the
    Fourier filter is fitted to the size.

    In bfloat16 the two finer levels of the ways up, which are the costliest, compute in it. The rest stays in float32:
    its rounding errors would pass through the sharp softmaxes of the cross-attention that follows, which magnify them.
    bfloat16 is therefore faster, and hardly smaller. float16 rounds eight times finer and may take everything:
    `.to(torch.float16)` halves the model; `from_pretrained(..., dtype=torch.float16)` splits it as bfloat16 does.

    Parameters:
        sample_size (`int` or `[int, int]`, defaults to 64):
            Height and width of the sample (latents, or pixels for a model without autoencoder) the model is made for.
        in_channels (`int`, defaults to 3):
            Channels of the sample.
        condition_channels (`list[str]`, defaults to `["buildings", "transmitter", "buildings"]`):
            Names of the condition's planes, in order. A name may come twice.
        condition_ranges (`list[[float, float]]`, *optional*):
            What -1 and 1 of each plane become before the network sees them: for weights that were trained with planes
            in another range, such as RadioDiff's k2 models.
        condition_encoder (`str`, defaults to `"swin"`):
            `"swin"`, `"resnet"`, `"effnet"`, `"vgg"`, or the light `"conv"`.
        condition_encoder_config (`dict`, *optional*):
            Arguments of the encoder: `embed_dim` and `depths` of `"swin"`, `width` and `stride` of `"conv"`, ...
        condition_adapter (`bool`, defaults to `False`):
            Bring the planes to three with a 1 x 1 convolution before the encoder, as RadioDiff does with five.
        base_channels (`int`, defaults to 128):
            Width of the first level.
        channel_multipliers (`list[int]`, defaults to `[1, 2, 4, 4]`):
            Widths of the levels as multiples of it.
        window_sizes (`list[int]`, defaults to `[8, 4, 2, 1]`):
            Window of the cross-attention at each level.
        num_attention_heads (`int`, defaults to 4):
            Heads of the self-attention.
        attention_head_dim (`int`, defaults to 32):
            Channels of each of its heads.
        relation_norm (`str`, defaults to `"batch"`):
            Normalisation in the cross-attention: `"batch"` as in RadioDiff, or `"group"`, which knows no running
            statistics and suits small batches and averaged weights.
        relation_dropout (`float`, defaults to 0.1):
            Dropout in the cross-attention.
        fourier_scale (`float`, defaults to 16):
            Spread of the time embedding's random frequencies.
        patch_size (`int`, defaults to 1):
            Fold patches of so many pixels a side into channels, so that a model without autoencoder works at a lower
            resolution inside.
        detail_width (`int`, defaults to 0):
            Width of output layers at full resolution that see the condition's planes again; 0 is RadioDiff's output, a
            1 x 1 convolution. For models without autoencoder, whose sample is as large as the condition.
        error_map (`bool`, defaults to `False`):
            At t = 1 the noise is the sample itself, and the second way up has nothing to say about it. It was trained
            to say there how wrong the map of one step will be (`return_error`).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DownBlock", "MidBlock", "UpBlock", "SwinTransformerBlock"]
    _repeated_blocks = ["ResnetBlock", "ConditionAttention", "LinearAttention"]
    # Diffusers keeps to this list in `from_pretrained`, `_apply` below in any other cast to bfloat16.
    _keep_in_fp32_modules = ["adapter", "encoder", "condition_proj", "conv_in", "norm_in", "time_embedding"]
    _keep_in_fp32_modules += ["down_blocks", "mid_block", "filter_norm", "filter_conv", "filter", "up_blocks"]
    # Targets for `LoraConfig(target_modules=...)`, as expressions over full names. The standardised convolutions of
    # the residual blocks are left out: an adapter on them works, but fusing it is not the same function.
    lora_target_modules = {
        "attention": r"(down_blocks|mid_block|.*up_blocks).*\.(to_qkv|to_q|to_k|to_v|to_out\.0)",
        "convolutions": r".*\.(downsample|upsample|filter_conv|skip|ff_in|ff_out|(condition|feature)_in\.0)",
        "condition_encoder": r"(condition_proj\.\d+|encoder\..*(qkv|proj|mlp\.[03]|levels\.\d+\.[03]))",
    }
    _skip_layerwise_casting_patterns = ["norm", "filter", "frequencies", "conv_in", "conv_out"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | list[int] = 64,
        in_channels: int = 3,
        condition_channels: list[str] = ("buildings", "transmitter", "buildings"),
        condition_encoder: str = "swin",
        condition_encoder_config: dict | None = None,
        condition_adapter: bool = False,
        base_channels: int = 128,
        channel_multipliers: list[int] = (1, 2, 4, 4),
        window_sizes: list[int] = (8, 4, 2, 1),
        num_attention_heads: int = 4,
        attention_head_dim: int = 32,
        relation_norm: str = "batch",
        relation_dropout: float = 0.1,
        fourier_scale: float = 16.0,
        patch_size: int = 1,
        detail_width: int = 0,
        error_map: bool = False,
        condition_ranges: list[list[float]] | None = None,
    ):
        super().__init__()
        _check_config(self.config)
        planes = len(condition_channels)
        self.adapter = nn.Conv2d(planes, 3, 1) if condition_adapter else None
        self.encoder = make_condition_encoder(
            condition_encoder, 3 if condition_adapter else planes, **(condition_encoder_config or {})
        )
        encoded = self.encoder.out_channels

        # 1. The condition's and the sample's way in
        widths = [base_channels] + [base_channels * multiplier for multiplier in channel_multipliers]
        folded = in_channels * patch_size**2
        self.condition_proj = nn.ModuleList(nn.Conv2d(encoded[i], widths[i], 1) for i in range(len(widths) - 1))
        self.conv_in = nn.Conv2d(folded + encoded[0], base_channels, 7, padding=3)
        self.norm_in = nn.GroupNorm(min(base_channels // 4, 8), base_channels)
        time_channels = 4 * base_channels
        self.time_embedding = TimeEmbedding(base_channels, time_channels, fourier_scale)

        # 2. The way down, the middle, two ways up
        levels = len(channel_multipliers)
        attention = {"num_heads": num_attention_heads, "head_dim": attention_head_dim}
        relations = [
            {"window_size": window, "norm": relation_norm, "dropout": relation_dropout} for window in window_sizes
        ]
        self.down_blocks = nn.ModuleList(
            DownBlock(widths[i], widths[i + 1], time_channels, attention, relations[i], last=i == levels - 1)
            for i in range(levels)
        )
        self.mid_block = MidBlock(widths[-1], time_channels, attention)
        scale = patch_size * 2 ** (levels - 1)
        filter_size = [-(-side // scale) for side in _pair(sample_size)]
        detail = {"features": DETAIL_FEATURES, "width": detail_width, "planes": planes} if detail_width else None
        decoder = (widths, in_channels, time_channels, attention, relations, filter_size, patch_size, detail)
        self.drift_decoder = Decoder(*decoder)
        self.noise_decoder = Decoder(*decoder)
        self.gradient_checkpointing = False

    def _apply(self, fn, recurse=True):
        decoders = (self.drift_decoder, self.noise_decoder)
        for parent in (self, *decoders):
            for name, module in parent.named_children():
                if module not in decoders:
                    module._apply(_but_to_bfloat16(fn) if name in self._keep_in_fp32_modules else fn)
        return self

    def enable_gradient_checkpointing(self, gradient_checkpointing_func=None) -> None:
        """Compute each block again in the backward pass rather than keep what is in it: less memory, more time."""
        super().enable_gradient_checkpointing(gradient_checkpointing_func or checkpointed)

    def encode_condition(self, condition: torch.Tensor) -> ConditionFeatures:
        """
        Encode the planes of a scene, once for all steps.

        Args:
            condition (`torch.Tensor` of shape `(batch, planes, height, width)`):
                The planes named in `config.condition_channels`, scaled to [-1, 1].

        Returns:
            [`ConditionFeatures`]: four feature maps, finest first, to be passed to `forward` as `condition_features`.
        """
        planes = len(self.config.condition_channels)
        if condition.ndim != 4 or condition.shape[1] != planes:
            raise ValueError(
                f"condition has shape {tuple(condition.shape)}; this model takes (batch, {planes}, height, width), the"
                f" planes being {', '.join(self.config.condition_channels)}."
            )
        if self.config.condition_ranges is not None:
            low, high = condition.new_tensor(self.config.condition_ranges).T[..., None, None]
            condition = low + (condition + 1) / 2 * (high - low)
        condition = condition.to(self.conv_in.weight.dtype)
        if self.adapter is not None:
            condition = self.adapter(condition)
        features = ConditionFeatures(self.encoder(condition), planes=condition if self.config.detail_width else None)
        if not torch.is_grad_enabled():
            features.prepared = self._prepare(features, tuple(features[0].shape[-2:]))
        return features

    def _prepare(self, features: list[torch.Tensor], size: tuple[int, int]) -> tuple:
        """All that follows from the condition alone, for a sample of that size: what joins it at the entrance, and the
        cross-attention's queries and skip connections."""
        first = F.interpolate(features[0], size=size, mode="bilinear", align_corners=False)
        down, drift, noise = [], [], []
        ups = zip(reversed(self.drift_decoder.up_blocks), reversed(self.noise_decoder.up_blocks), strict=True)
        level_size = size
        for feature, proj, block, (up1, up2) in zip(features, self.condition_proj, self.down_blocks, ups, strict=True):
            projected = proj(feature)
            for relation, prepared in ((block.relation, down), (up1.relation, drift), (up2.relation, noise)):
                prepared.append(relation.prepare(projected, level_size))
            level_size = tuple(-(-side // 2) for side in level_size)
        return size, first, down, drift, noise

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        condition: torch.Tensor | None = None,
        condition_features: list[torch.Tensor] | None = None,
        return_dict: bool = True,
        return_error: bool = False,
    ) -> RadioDiffUNet2DOutput | tuple[torch.Tensor]:
        """
        Predict drift and noise.

        Args:
            sample (`torch.Tensor` of shape `(batch, in_channels, height, width)`):
                The noisy sample. It may be float32 in a half-precision model, and should be while sampling: the last,
                exact part of the output is computed in float32 and returned in the sample's dtype.
            timestep (`torch.Tensor` or `float`):
                Time in (0, 1], one for the batch or one for each sample.
            condition (`torch.Tensor`, *optional*):
                The planes of the scene; see `encode_condition`.
            condition_features (`list[torch.Tensor]`, *optional*):
                What `encode_condition` made of them; takes the place of `condition`. Its batch may be a divisor of the
                sample's: then every condition serves that many samples in a row.
            return_dict (`bool`, defaults to `True`):
                Return a [`RadioDiffUNet2DOutput`] rather than a tuple.
            return_error (`bool`, defaults to `False`):
                At t = 1, of a model with `error_map`: also give the scale of the map's error, a Student distribution's
                with two degrees of freedom.

        Returns:
            [`RadioDiffUNet2DOutput`] or `tuple`: drift and noise, concatenated along the channels.
        """
        if (condition is None) == (condition_features is None):
            raise ValueError("Pass either condition or condition_features.")
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}; this model takes"
                f" (batch, {self.config.in_channels}, height, width)."
            )
        batch, _, height, width = sample.shape
        features = self.encode_condition(condition) if condition_features is None else condition_features
        if features[0].shape[0] != batch:
            features = _serve_batch(features, batch)
        t = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1).expand(batch)
        exact = self.conv_in.weight.dtype  # of what stays in float32 when the rest is in half precision

        # 1. Into the network
        patch = self.config.patch_size
        x = sample.to(exact)
        if patch > 1:
            x = F.pixel_unshuffle(F.pad(x, (0, -width % patch, 0, -height % patch), mode="replicate"), patch)
        size = tuple(x.shape[-2:])
        prepared = getattr(features, "prepared", None)
        if prepared is None or prepared[0] != size or torch.is_grad_enabled():
            prepared = self._prepare(features, size)
        _, first, down, drift, noise = prepared
        x = self.norm_in(self.conv_in(torch.cat([x, first], dim=1)))
        time_embedding = self.time_embedding(t, exact)

        # 2. Down and through the middle
        skips, first_skip = [], x
        for block, relation in zip(self.down_blocks, down, strict=True):
            x, *pair = self._run(block, x, time_embedding, relation)
            skips.append(pair)
        x = self._run(self.mid_block, x, time_embedding)
        for turn in (x, features[-1]):  # on the way back: done with the ways up, and done with all but the encoder
            if turn.requires_grad and not torch.compiler.is_compiling():
                turn.register_hook(lambda _: return_free_memory())

        # 3. Up, once for the drift and once for the noise
        outputs = []
        planes = getattr(features, "planes", None)
        # at t = 1 the noise is the sample itself, whatever the second decoder says
        pure_noise = not torch.compiler.is_compiling() and bool((t == 1).all())
        if return_error and not (pure_noise and self.config.error_map):
            raise ValueError("return_error is for t = 1 and models whose config has error_map")
        ways = ((self.drift_decoder, drift), (self.noise_decoder, noise))
        for decoder, relations in ways[: 1 if pure_noise and not return_error else 2]:
            y = x + decoder.filter(decoder.filter_conv(decoder.filter_norm(x)))
            levels = list(zip(decoder.up_blocks, reversed(skips), reversed(relations), strict=True))
            for block, (skip1, skip2), relation in levels[:2]:
                y = self._run(block, y, skip1, skip2, time_embedding, relation)
            with self._half_precision(y):
                for block, (skip1, skip2), relation in levels[2:]:
                    y = self._run(block, y, skip1, skip2, time_embedding, relation)
                y = self._run(decoder.resnet_out, torch.cat([y, first_skip], dim=1), time_embedding)
                outputs.append(decoder.unfold(y, sample.to(exact), planes).float())

        # 4. Preconditioning: at t = 1 the noise is the sample itself, at t = 0 the network's output has no part in C
        t = t.reshape(-1, 1, 1, 1)
        x = sample.float()
        norm = (t.square() + 1).rsqrt()
        drift = (1 - t) * x + t * norm * outputs[0]
        noise = x if pure_noise else t.sqrt() * x + (1 - t).sqrt() * norm * outputs[1]
        output = torch.cat([drift, noise], dim=1).to(sample.dtype)
        error = outputs[1].exp() if return_error else None
        if not return_dict:
            return (output,) if error is None else (output, error)
        return RadioDiffUNet2DOutput(sample=output, error=error)

    def _half_precision(self, x: torch.Tensor):
        """A context that computes in the model's half precision; without effect in a float32 model."""
        if self.dtype not in HALF_PRECISIONS or x.dtype in HALF_PRECISIONS:
            return nullcontext()
        return torch.autocast(x.device.type, dtype=self.dtype, cache_enabled=False)  # each weight serves once

    def _run(self, block, *inputs):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """diffusers warns at every cast of any model that `to` would not spare the modules to be kept in float32: also of
    models that have none, and of this one, which spares them (`_apply`)."""
    text = record.getMessage()
    return "should be kept in float32" not in text or not (
        "float32: []" in text or RadioDiffUNet2DModel.__name__ in text
    )


logging.getLogger(ModelMixin.__module__).addFilter(_is_worth_saying)


def _but_to_bfloat16(fn):
    """The same change of tensors (a move, a cast), but no cast of float32 to bfloat16."""

    def changed(tensor):
        result = fn(tensor)
        if tensor.dtype == torch.float32 and result.dtype == torch.bfloat16:
            return tensor.to(result.device)
        return result

    return changed


def _pair(size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _serve_batch(features, batch: int):
    count = features[0].shape[0]
    if batch % count:
        raise ValueError(f"condition and sample do not go together: {count} conditions for {batch} samples.")
    if not isinstance(features, ConditionFeatures):
        features = ConditionFeatures(features)
    return features.repeat_interleave(batch // count)


def check_channel_names(names) -> None:
    """Fail in one line where a configuration's `condition_channels` are no list of names."""
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"condition_channels must be a list of channel names, got {names!r}.")


def _check_config(config):
    names = config.condition_channels
    check_channel_names(names)
    ranges = config.condition_ranges
    if ranges is not None and (len(ranges) != len(names) or not all(len(r) == 2 and r[0] < r[1] for r in ranges)):
        raise ValueError(f"condition_ranges needs [low, high] for each of {', '.join(names)}, got {ranges}.")
    if config.condition_encoder not in CONDITION_ENCODERS:
        known = ", ".join(CONDITION_ENCODERS)
        raise ValueError(f"condition_encoder is {config.condition_encoder!r}; choose one of {known}.")
    if len(config.channel_multipliers) != 4 or len(config.window_sizes) != 4:
        raise ValueError(
            "channel_multipliers and window_sizes need four entries each, one for each feature map of the condition"
            f" encoder, got {list(config.channel_multipliers)} and {list(config.window_sizes)}."
        )
    if config.base_channels < 1 or config.base_channels % 16:
        raise ValueError(f"base_channels must be a multiple of 16, got {config.base_channels}.")
    for name in ("in_channels", "num_attention_heads", "attention_head_dim", "patch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}.")
    if config.relation_norm not in ("batch", "group"):
        raise ValueError(f"relation_norm is {config.relation_norm!r}; choose 'batch' or 'group'.")

"""The layers of RadioDiff's U-Net: residual blocks, attention, the condition's cross-attention, the Fourier filter."""

import math
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


def attend(query, key, value, mask=None, scale=1.0) -> torch.Tensor:
    """
    Softmax attention. The trained softmaxes are sharp: in float32 the rounding of a blockwise kernel shows in the
    output (1e-4). Small maps therefore take PyTorch's plain kernel, which is as fast there; large ones, and half
    precision, whichever kernel is best.
    """
    query = query * scale
    exact = query.dtype == torch.float32 and query.shape[-2] * key.shape[-2] <= 256**2
    if exact and query.device.type == "cpu":
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)


@contextmanager
def _standing_still(module: nn.Module):
    """Batch norms do not count a batch again: what is made anew was counted the first time."""
    norms = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d) and one.training]
    before = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counted in before:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(counted)


def checkpointed(module: nn.Module, *inputs: torch.Tensor, function: Callable | None = None, **options) -> Any:
    """The module's result, or that of a function of its, of which the backward pass keeps the inputs alone."""
    contexts = lambda: (nullcontext(), _standing_still(module))  # noqa: E731
    return checkpoint(function or module, *inputs, use_reentrant=False, context_fn=contexts, **options)


class Recomputing(nn.Module):
    """A layer that does not keep for the backward pass what it can cheaply make anew there."""

    gradient_checkpointing = False  # set by diffusers: whole blocks are made anew then
    worth_while = 2**18  # values; for fewer the bookkeeping costs more

    def recompute(self, function: Callable, *inputs: torch.Tensor, size: int) -> torch.Tensor:
        """
        `function(*inputs)`, of which only the inputs are kept. If its last step is a convolution or a product, that
        runs once all the same, for making anew ends where the last step's inputs are there. `size` is the number of
        values not kept.
        """
        wanted = torch.is_grad_enabled() and size >= self.worth_while and not self.gradient_checkpointing
        if not wanted or torch.compiler.is_compiling():  # a compiler decides for itself what to keep
            return function(*inputs)
        return checkpointed(self, *inputs, function=function, preserve_rng_state=False)


class StandardizedConv2d(nn.Conv2d):
    """
    A convolution whose kernels have mean 0 and variance 1 (weight standardisation, arXiv:1903.10520).

    In eval mode without gradients each kernel's mean and deviation are computed once and kept; to shift and scale by
    them in every call takes 3 % of a step, while kept kernels would take as much memory as the weights. Any change of
    the weight, be it by a load, a cast, an optimizer, an EMA swap or a fused LoRA, makes them stale, and the next call
    notices: it compares the tensor's identity, its version and a sample of its values (the last because `weight.data`
    can be written without leaving a trace in the version).

    A LoRA adapter adds to the output of the standardised kernels; fused into the weight it would be standardised with
    it, which is another function. `RadioDiffUNet2DModel.lora_target_modules` leaves these layers out.
    """

    _PROBES = 64

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        return self._conv_forward(hidden_states, self.standardized_weight().to(dtype), self.bias)

    def standardized_weight(self) -> torch.Tensor:
        weight = self.weight
        foldable = not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        if not foldable or weight.device.type != "cpu":  # elsewhere comparing would wait for the device
            # One pass, 15 times as fast as the formula; it differs from it in the last bit.
            return F.layer_norm(weight.float(), weight.shape[1:], eps=1e-5)
        # in the published network's order of operations: its trained softmaxes magnify a last bit
        mean, scale = self._statistics()
        return (weight - mean).mul_(scale).to(weight.dtype)

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and reciprocal deviation of each kernel, in float32."""
        weight = self.weight
        probe = weight.detach().flatten()[:: max(1, weight.numel() // self._PROBES)]
        state = (id(weight), weight._version, weight.dtype)
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] != state or not torch.equal(kept[1], probe):
            kernels = weight.float()
            mean = kernels.mean(dim=(1, 2, 3), keepdim=True)
            variance = kernels.var(dim=(1, 2, 3), correction=0, keepdim=True)
            kept = self._kept = (state, probe.clone(), (mean, (variance + 1e-5).rsqrt()))
        return kept[2]


class ChannelNorm(nn.Module):
    """Normalisation over the channels of each pixel, with a gain and no bias."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.float()
        mean = x.mean(dim=1, keepdim=True)
        variance = x.var(dim=1, correction=0, keepdim=True)
        x = (x - mean) * (variance + 1e-5).rsqrt() * self.weight.float()[None, :, None, None]
        return x.to(hidden_states.dtype)


class TimeEmbedding(nn.Module):
    """Random Fourier features of log(t) / 4, and two linear layers."""

    def __init__(self, channels: int, embedding_channels: int, scale: float):
        super().__init__()
        # Frozen. Kept in float32 whatever the model's dtype: half a number would be noise after the sine.
        self.register_buffer("frequencies", torch.randn(channels // 2) * scale)
        self.linear_1 = nn.Linear(channels, embedding_channels)
        self.linear_2 = nn.Linear(embedding_channels, embedding_channels)

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # in this order: the phases reach hundreds of radians, where the last bit of a float32 is already 1e-5
        phases = (timestep.log() / 4)[:, None] * self.frequencies * 2 * math.pi
        features = torch.cat([phases.sin(), phases.cos()], dim=-1)
        return self.linear_2(F.gelu(self.linear_1(features.to(dtype))))

    def _apply(self, fn, recurse=True):
        frequencies = self.frequencies
        super()._apply(fn, recurse)
        if self.frequencies.dtype != torch.float32:
            self.frequencies = frequencies.to(self.frequencies.device)
        return self


class ResnetBlock(Recomputing):
    """Two standardised 3 x 3 convolutions; the time embedding scales and shifts between them."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int, groups: int = 8):
        super().__init__()
        self.time_proj = nn.Linear(time_channels, 2 * out_channels)
        self.conv1 = StandardizedConv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, out_channels)
        self.conv2 = StandardizedConv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels)
        same = in_channels == out_channels
        self.conv_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden_states: torch.Tensor, time_embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.time_proj(F.silu(time_embedding))[:, :, None, None].chunk(2, dim=1)
        size = max(hidden_states.numel(), self.conv2.weight.numel())
        x = self.recompute(self.conv1, hidden_states, size=size)
        x = self.recompute(self._second_half, x, scale, shift, size=size)
        return self.recompute(self._activated, x, size=size) + self.conv_shortcut(hidden_states)

    def _second_half(self, x, scale, shift):
        return self.conv2(F.silu(self.norm1(x) * (scale + 1) + shift))

    def _activated(self, x):
        return F.silu(self.norm2(x))


class LinearAttention(Recomputing):
    """Attention whose cost is linear in the number of pixels: softmax over the channels of q, over the pixels of k."""

    def __init__(self, channels: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * num_heads * head_dim, 1, bias=False)
        self.to_out = nn.ModuleList([nn.Conv2d(num_heads * head_dim, channels, 1), ChannelNorm(channels)])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.recompute(self._attend, hidden_states, size=5 * hidden_states.numel())

    def _attend(self, hidden_states: torch.Tensor) -> torch.Tensor:
        height, width = hidden_states.shape[-2:]
        qkv = self.to_qkv(self.norm(hidden_states)).flatten(2)
        query, key, value = qkv.unflatten(1, (3, self.num_heads, self.head_dim)).unbind(1)
        query = query.softmax(dim=-2) * self.head_dim**-0.5
        key = key.softmax(dim=-1)
        context = torch.einsum("bhdn,bhen->bhde", key, value / (height * width))
        x = torch.einsum("bhde,bhdn->bhen", context, query)
        x = x.flatten(1, 2).unflatten(-1, (height, width))
        for layer in self.to_out:
            x = layer(x)
        return x


class MidAttention(nn.Module):
    """Ordinary softmax attention over all pixels, at the lowest resolution."""

    def __init__(self, channels: int, num_heads: int, head_dim: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.norm = ChannelNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * num_heads * head_dim, 1, bias=False)
        self.to_out = nn.ModuleList([nn.Conv2d(num_heads * head_dim, channels, 1)])

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        height, width = hidden_states.shape[-2:]
        qkv = self.to_qkv(self.norm(hidden_states)).flatten(2)
        query, key, value = qkv.unflatten(1, (3, self.num_heads, self.head_dim)).transpose(-1, -2).unbind(1)
        x = attend(query, key, value, scale=self.head_dim**-0.5)
        x = x.transpose(-1, -2).flatten(1, 2).unflatten(-1, (height, width))
        return hidden_states + self.to_out[0](x)


def sine_positions(height: int, width: int, channels: int, device: torch.device) -> torch.Tensor:
    """Sines and cosines of row and column (counted from 1), `(height, width, channels)`, rows in the first half."""
    half = channels // 2
    periods = 10000 ** (2 * (torch.arange(half, device=device) // 2) / half)

    def waves(length):
        angles = torch.arange(1, length + 1, device=device)[:, None] / periods
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=-1).flatten(1)

    rows = waves(height)[:, None].expand(height, width, half)
    columns = waves(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=-1)


class ConditionAttention(Recomputing):
    """
    Cross-attention between the condition (queries) and the U-Net's features (keys and values), both averaged over
    windows. Whatever depends on the condition alone is computed by `prepare`, once a map.
    """

    def __init__(
        self,
        condition_channels: int,
        in_channels: int,
        channels: int,
        window_size: int,
        num_heads: int = 8,
        norm: str = "batch",
        dropout: float = 0.1,
    ):
        super().__init__()
        self.window_size, self.num_heads = window_size, num_heads
        self.condition_in = nn.Sequential(nn.Conv2d(condition_channels, channels, 1), _relation_norm(norm, channels))
        self.feature_in = nn.Sequential(nn.Conv2d(in_channels, channels, 1), _relation_norm(norm, channels))
        self.skip = nn.Conv2d(2 * channels, channels, 1)
        self.norm = nn.GroupNorm(8, channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.ff_in = nn.Conv2d(channels, 2 * channels, 1)
        self.ff_out = nn.Conv2d(2 * channels, channels, 1)
        self.to_out = nn.ModuleList([nn.Conv2d(channels, channels, 1)])
        self.dropout = nn.Dropout(dropout)

    def prepare(self, condition: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Of a condition feature map: itself at `size`, its windows' means, and the queries."""
        condition = self.condition_in(condition)
        resized = F.interpolate(condition, size=size, mode="bilinear", align_corners=True)
        pooled = self._pool(condition)
        return resized, pooled, self._heads(self.to_q(self._tokens(pooled)))

    def forward(self, hidden_states: torch.Tensor, prepared: tuple[torch.Tensor, ...]) -> torch.Tensor:
        resized, pooled, query = prepared
        features = self.feature_in(hidden_states)
        shortcut = self.recompute(self._joined, resized, features, size=3 * features.numel())
        tokens = self._tokens(self._pool(features))
        key, value = self._heads(self.to_k(tokens)), self._heads(self.to_v(tokens))
        x = attend(query, key, value)
        x = pooled + x.transpose(-1, -2).flatten(1, 2).unflatten(-1, pooled.shape[-2:])
        x = x + self.dropout(self.ff_out(self.dropout(F.relu(self.ff_in(x)))))
        x = F.interpolate(x, size=shortcut.shape[-2:], mode="bilinear", align_corners=True)
        return shortcut + self.to_out[0](x)

    def _joined(self, resized: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self.norm(features + self.skip(torch.cat([resized, features], dim=1)))

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        window = self.window_size
        if window == 1:
            return x
        height, width = x.shape[-2:]
        return F.avg_pool2d(F.pad(x, (0, -width % window, 0, -height % window)), window)

    def _tokens(self, pooled: torch.Tensor) -> torch.Tensor:
        tokens = pooled.permute(0, 2, 3, 1).contiguous()
        return (tokens + sine_positions(*tokens.shape[1:], tokens.device).to(tokens.dtype)).flatten(1, 2)

    def _heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _relation_norm(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels, momentum=0.03, eps=1e-3)
    return nn.GroupNorm(8, channels)


class FourierFilter(nn.Module):
    """
    A learned filter on the whole map, one complex gain for each channel and frequency, stored as real pairs.

    At the size it was made for the gains multiply the spectrum. At any other size the same filter is applied: its
    kernel, taken back to pixels, is padded with zeros or cut to the new size.
    """

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        self.size = tuple(size)
        self.weight = nn.Parameter(0.02 * torch.randn(channels, size[0], size[1] // 2 + 1, 2))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        size = tuple(hidden_states.shape[-2:])
        with torch.autocast(hidden_states.device.type, enabled=False):  # no FFT in half precision on a CPU
            spectrum = torch.fft.rfft2(hidden_states.float().contiguous(), norm="ortho")
            filtered = torch.fft.irfft2(spectrum * self.gains(size), s=size, norm="ortho")
        return filtered.to(hidden_states.dtype)

    def gains(self, size: tuple[int, int]) -> torch.Tensor:
        """The complex gains at that size, `(channels, height, width // 2 + 1)`."""
        gains = torch.view_as_complex(self.weight.float().contiguous())
        if size == self.size:
            return gains
        kernel = torch.fft.fftshift(torch.fft.irfft2(gains, s=self.size), dim=(-2, -1))
        # after the shift the centre tap of n taps is number n // 2
        before = [new // 2 - old // 2 for new, old in zip(size, self.size, strict=True)]
        after = [new - old - pad for new, old, pad in zip(size, self.size, before, strict=True)]
        kernel = F.pad(kernel, (before[1], after[1], before[0], after[0]))
        return torch.fft.rfft2(torch.fft.ifftshift(kernel, dim=(-2, -1)))

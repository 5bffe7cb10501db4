"""LightningDiT: a class-conditioned diffusion transformer on the latents of a tokenizer.

The transformer predicts the velocity of a straight path between noise (time 0) and data (time 1). From the same
weights it computes the same function as the published LightningDiT, see
`radiodiff_diffusers.convert.lightningdit_from_original`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, apply_rotary_emb
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import RMSNorm
from diffusers.utils import BaseOutput
from torch import nn

logger = logging.getLogger(__name__)

# layers, width, heads. B to 1p6B are the published sizes; S is ours, for small data sets and small machines.
LIGHTNING_DIT_SIZES = {
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "1p0B": (24, 1536, 24),
    "1p6B": (28, 1792, 28),
}


def lightning_dit_config(size: str, **overrides) -> dict:
    """The arguments of a named size: `"XL/1"`, `"S/2"`, or with the prefix of the originals, `"LightningDiT-XL/1"`.

    The number after the slash is the patch size (1 when left out). `overrides` replace single arguments:
    `LightningDiTTransformer2DModel(**lightning_dit_config("S/1", num_classes=31))`.
    """
    name, _, patch = size.removeprefix("LightningDiT-").partition("/")
    if name not in LIGHTNING_DIT_SIZES or patch not in ("", "1", "2"):
        raise ValueError(f"no LightningDiT size {size!r}: give one of {', '.join(LIGHTNING_DIT_SIZES)}, with /1 or /2")
    layers, width, heads = LIGHTNING_DIT_SIZES[name]
    config = {
        "patch_size": int(patch or 1),
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
    }
    return config | overrides


@dataclass
class LightningDiTOutput(BaseOutput):
    """`sample`: the predicted velocity, data minus noise, of the shape of the input."""

    sample: torch.Tensor


def sincos_position_embedding(height: int, width: int, dim: int, device=None) -> torch.Tensor:
    """Fixed table of height * width rows: first half of the channels the column, second half the row; sines first."""
    frequencies = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4))

    def embed(count):
        angles = torch.outer(torch.arange(count, dtype=torch.float32, device=device), frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    columns = embed(width)[None, :].expand(height, -1, -1)
    rows = embed(height)[:, None].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=-1).reshape(height * width, dim)


def rotary_position_tables(height: int, width: int, head_dim: int, device=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary angles: first half of the channels the row, second half the column.

    Each frequency serves a pair of neighbouring channels. Positions count 0, 1, 2, ... whatever the size of the input.
    """
    axis_dim = head_dim // 2
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, axis_dim, 2, dtype=torch.float32, device=device) / axis_dim)

    def angles(count):
        positions = torch.arange(count, dtype=torch.float32, device=device)
        return torch.outer(positions, frequencies).repeat_interleave(2, dim=1)

    rows = angles(height)[:, None].expand(-1, width, -1)
    columns = angles(width)[None, :].expand(height, -1, -1)
    table = torch.cat([rows, columns], dim=-1).reshape(height * width, head_dim)
    return table.cos(), table.sin()


class LightningDiTAttnProcessor:
    """Softmax attention through diffusers' dispatcher, so every attention backend of diffusers can be chosen."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, attn: LightningDiTAttention, hidden_states, rotary_emb=None):
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)

        query = query.unflatten(-1, (-1, attn.head_dim))
        key = key.unflatten(-1, (-1, attn.head_dim))
        value = value.unflatten(-1, (-1, attn.head_dim))

        if attn.norm_q is not None:
            # under autocast the norms' weights are fp32 and promote: back to the type of the values
            query, key = attn.norm_q(query).to(value.dtype), attn.norm_k(key).to(value.dtype)

        if rotary_emb is not None:
            query = apply_rotary_emb(query, rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, rotary_emb, sequence_dim=1)

        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        hidden_states = hidden_states.flatten(2, 3).to(query.dtype)
        return attn.to_out[0](hidden_states)


class LightningDiTAttention(nn.Module, AttentionModuleMixin):
    """Self-attention with biases and, if asked for, a norm on queries and keys (before the rotation)."""

    _default_processor_cls = LightningDiTAttnProcessor
    _available_processors = [LightningDiTAttnProcessor]

    def __init__(self, dim: int, heads: int, qk_norm: bool, rms_norm: bool):
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.use_bias = True
        self.is_cross_attention = False
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = self.norm_k = None
        if qk_norm:
            self.norm_q, self.norm_k = (
                RMSNorm(self.head_dim, eps=1e-6) if rms_norm else nn.LayerNorm(self.head_dim) for _ in range(2)
            )
        self.set_processor(LightningDiTAttnProcessor())

    def forward(self, hidden_states: torch.Tensor, rotary_emb=None) -> torch.Tensor:
        return self.processor(self, hidden_states, rotary_emb)


class LightningDiTBlock(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the embedding of time and class (adaLN)."""

    def __init__(self, dim, heads, mlp_ratio, qk_norm, swiglu, rms_norm, adaln_shift):
        super().__init__()
        self.norm1 = _make_norm(dim, rms_norm)
        self.attn = LightningDiTAttention(dim, heads, qk_norm, rms_norm)
        self.norm2 = _make_norm(dim, rms_norm)
        inner_dim = int(dim * mlp_ratio)
        if swiglu:  # two input matrices instead of one: two thirds of the width keep the parameter count
            self.ff = FeedForward(dim, inner_dim=int(2 / 3 * inner_dim), activation_fn="swiglu")
        else:
            self.ff = FeedForward(dim, inner_dim=inner_dim, activation_fn="gelu-approximate")
        self.adaln_shift = adaln_shift
        self.modulation = nn.Linear(dim, (6 if adaln_shift else 4) * dim)

    def forward(self, hidden_states: torch.Tensor, temb: torch.Tensor, rotary_emb=None) -> torch.Tensor:
        modulation = self.modulation(nn.functional.silu(temb))[:, None]
        if self.adaln_shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        else:
            shift1 = shift2 = 0.0
            scale1, gate1, scale2, gate2 = modulation.chunk(4, dim=-1)

        normed = self.norm1(hidden_states) * (1 + scale1) + shift1
        hidden_states = hidden_states + gate1 * self.attn(normed, rotary_emb)
        normed = self.norm2(hidden_states) * (1 + scale2) + shift2
        return hidden_states + gate2 * self.ff(normed)


def _make_norm(dim: int, rms_norm: bool) -> nn.Module:
    return RMSNorm(dim, eps=1e-6) if rms_norm else nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)


class LightningDiTTransformer2DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """
    Diffusion transformer with rotary positions, SwiGLU, RMSNorm and adaLN, conditioned on a class label.

    Args:
        sample_size (`int`, defaults to 16): Side of the latent the model is made for. Other sizes, square or not,
            work as well: position tables always count from 0 in steps of one.
        patch_size (`int`, defaults to 1): Side of the square of latent pixels that becomes one token.
        in_channels (`int`, defaults to 32): Channels of the latent, in and out.
        num_layers (`int`, defaults to 28): Transformer blocks.
        num_attention_heads (`int`, defaults to 16): Heads; the width is heads times `attention_head_dim`.
        attention_head_dim (`int`, defaults to 72): Channels of a head, a multiple of 4 with rotary positions.
        mlp_ratio (`float`, defaults to 4.0): Width of the feed-forward over the width of the model.
        num_classes (`int`, defaults to 1000): Classes. Label `num_classes` is the null class of guidance.
        class_dropout_prob (`float`, defaults to 0.1): How often training replaces a label by the null class.
        qk_norm (`bool`, defaults to `False`): Norm on queries and keys; keeps long bf16 runs from diverging.
        swiglu (`bool`, defaults to `True`): SwiGLU feed-forward, else GELU (tanh approximation).
        rotary (`bool`, defaults to `True`): Rotary positions in attention, beside the sine-cosine table.
        rms_norm (`bool`, defaults to `True`): RMSNorm with weight, else LayerNorm without.
        adaln_shift (`bool`, defaults to `True`): Whether adaLN shifts, or only scales and gates.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LightningDiTBlock"]
    _repeated_blocks = ["LightningDiTBlock"]
    _skip_layerwise_casting_patterns = ["norm", "patch_embed", "time_embedding"]

    # Regular expressions over full module names for `peft.LoraConfig(target_modules=...)`.
    lora_target_modules = {
        "attention": r"blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
        "feed_forward": r"blocks\.\d+\.ff\.net\.(0\.proj|2)",
        "all": r"blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2)|modulation)",
        "classes": r"label_embedding",
    }

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        patch_size: int = 1,
        in_channels: int = 32,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        qk_norm: bool = False,
        swiglu: bool = True,
        rotary: bool = True,
        rms_norm: bool = True,
        adaln_shift: bool = True,
    ):
        super().__init__()
        dim = num_attention_heads * attention_head_dim
        if dim % 4:
            raise ValueError(f"the width {dim} (heads x head size) must be a multiple of 4")
        if rotary and attention_head_dim % 4:
            raise ValueError(
                f"attention_head_dim is {attention_head_dim}: rotary positions need a multiple of 4 (two axes, pairs)"
            )
        self.patch_embed = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        # the sinusoids see t in [0, 1] as it is, not multiplied by 1000
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(256, dim)
        self.label_embedding = nn.Embedding(num_classes + 1, dim)
        self.blocks = nn.ModuleList(
            LightningDiTBlock(dim, num_attention_heads, mlp_ratio, qk_norm, swiglu, rms_norm, adaln_shift)
            for _ in range(num_layers)
        )
        self.norm_out = _make_norm(dim, rms_norm)
        self.modulation_out = nn.Linear(dim, 2 * dim)
        self.proj_out = nn.Linear(dim, patch_size**2 * in_channels)
        self.gradient_checkpointing = False
        self.reset_parameters()

    def reset_parameters(self):
        """Start of training: blocks are identities and the output is zero, so early steps are stable."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(self.patch_embed.weight.shape[0], -1))
        nn.init.zeros_(self.patch_embed.bias)
        for embedding in (self.label_embedding, self.time_embedding.linear_1, self.time_embedding.linear_2):
            nn.init.normal_(embedding.weight, std=0.02)
        for zero in (*(block.modulation for block in self.blocks), self.modulation_out, self.proj_out):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    @property
    def null_label(self) -> int:
        """The label that means no class, used by classifier-free guidance."""
        return self.config.num_classes

    @torch.no_grad()
    def set_num_classes(self, num_classes: int) -> None:
        """Give the model another set of classes. Every row of the new label table starts from the null class's row.

        The old classes are forgotten: train before asking for the new ones.
        """
        old = self.label_embedding
        if type(old) is not nn.Embedding:
            raise ValueError("the label table carries a LoRA adapter: unload it before the number of classes changes")
        null_row = old.weight[self.config.num_classes]
        self.label_embedding = nn.Embedding(num_classes + 1, old.embedding_dim, device=old.weight.device)
        self.label_embedding.to(old.weight.dtype)
        self.label_embedding.weight.copy_(null_row.expand_as(self.label_embedding.weight))
        logger.warning(
            "label table: %d classes replaced by %d new ones, every row a copy of the null class's row; "
            "all classes give the same output until the model is trained on them",
            self.config.num_classes,
            num_classes,
        )
        self.register_to_config(num_classes=num_classes)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.Tensor,
        return_dict: bool = True,
    ) -> LightningDiTOutput | tuple[torch.Tensor]:
        """
        Args:
            sample (`torch.Tensor`): Latent, (batch, channels, height, width), height and width multiples of the patch.
            timestep (`torch.Tensor` or `float`): Time in [0, 1], 0 noise and 1 data; one for all or one per sample.
            class_labels (`torch.Tensor`): Integer labels, (batch,); `num_classes` is the null class.
            return_dict (`bool`, defaults to `True`): Return a [`LightningDiTOutput`], else a tuple.
        """
        batch, channels, height, width = sample.shape
        patch = self.config.patch_size
        if channels != self.config.in_channels or height % patch or width % patch:
            raise ValueError(
                f"sample is {tuple(sample.shape)}: expected (batch, {self.config.in_channels}, height, width) with "
                f"height and width multiples of the patch size {patch}"
            )
        rows, columns = height // patch, width // patch

        # 1. tokens and their positions. The table takes the weights' type, not the activations': under autocast the
        #    residual stream then stays fp32.
        dim = self.patch_embed.out_channels
        positions = sincos_position_embedding(rows, columns, dim, sample.device).to(self.patch_embed.weight.dtype)
        hidden_states = self.patch_embed(sample).flatten(2).transpose(1, 2) + positions
        rotary_emb = None
        if self.config.rotary:
            rotary_emb = rotary_position_tables(rows, columns, self.config.attention_head_dim, sample.device)

        # 2. time and class
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).expand(batch)
        if self.training and self.config.class_dropout_prob > 0:
            dropped = torch.rand(batch, device=class_labels.device) < self.config.class_dropout_prob
            class_labels = torch.where(dropped, self.config.num_classes, class_labels)
        temb = self.time_embedding(self.time_proj(timestep).to(self.time_embedding.linear_1.weight.dtype))
        temb = temb + self.label_embedding(class_labels)

        # 3. blocks
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, temb, rotary_emb)
            else:
                hidden_states = block(hidden_states, temb, rotary_emb)

        # 4. back to the latent: token channels are (row in patch, column in patch, channel)
        shift, scale = self.modulation_out(nn.functional.silu(temb))[:, None].chunk(2, dim=-1)
        hidden_states = self.proj_out(self.norm_out(hidden_states) * (1 + scale) + shift)
        hidden_states = hidden_states.reshape(batch, rows, columns, patch, patch, channels)
        output = hidden_states.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)

        if not return_dict:
            return (output,)
        return LightningDiTOutput(sample=output)

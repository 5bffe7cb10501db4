"""The LoRA adapter that a recipe trains: its size, and which layers of a model it changes: presets, or names of your
own."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn

from .config import option
from .preflight import count_parameters

PRESETS = {
    "attention": r".*\.(to_q|to_k|to_v|to_qkv|to_out\.\d+)",
    "convolutions": r"(?!encoder\.).*(condition_in\.\d+|feature_in\.\d+|skip|ff_in|ff_out|conv_shortcut|downsample"
    r"|upsample|filter_conv|condition_proj\.\d+|conv_in|conv_in_condition)",
    "condition_encoder": r"encoder\..*",
    "output": r"(drift|noise)_decoder\.(conv_out|detail\.(conv\d+|skip))",
}


@dataclass
class AdapterConfig:
    rank: int = option(8, "of the low-rank matrices")
    alpha: int = option(8, "their product counts with alpha / rank")
    dropout: float = option(0.0, "before them")


def add_adapter(model: nn.Module, lora: AdapterConfig, targets: list[str], accelerator: Accelerator) -> None:
    """Put a new adapter into these layers; all else is frozen."""
    from peft import LoraConfig

    options = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    model.add_adapter(LoraConfig(target_modules=targets, **options))
    trained, frozen = count_parameters(model)
    accelerator.print(
        f"adapter of {trained:,} parameters in {len(targets)} layers: {trained / frozen:.2%} of the model",
        file=sys.stderr,
    )


def find_lora_targets(model: nn.Module, wanted: list[str], presets: dict[str, str] = PRESETS) -> list[str]:
    """Full names of the layers that the presets (of the U-Net, or a model's own), layer names or regular expressions
    in `wanted` mean.

    Only plain linear, convolution and embedding layers: the residual blocks' convolutions standardise their weights,
    and would standardise an adapter that is fused into them.
    """
    able = [n for n, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d, nn.Embedding)]
    found: list[str] = []
    for one in wanted:
        pattern = presets.get(one, one)
        try:
            matches = [n for n in able if re.fullmatch(pattern, n) or n.endswith("." + one)]
        except re.error as error:
            raise ValueError(f"lora.targets: {one!r} is no regular expression ({error})") from None
        if not matches:
            raise ValueError(
                f"lora.targets: {one!r} names no linear or plain convolution layer of this model; presets: "
                f"{', '.join(presets)}"
            )
        found += [n for n in matches if n not in found]
    return found

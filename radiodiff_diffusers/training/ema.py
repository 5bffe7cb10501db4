"""The moving average of a model: diffusers' EMAModel for its weights, and its buffers too.

EMAModel follows parameters only. A model with BatchNorm would get the averaged weights with running statistics that
belong to others, so floating-point buffers are averaged alike (as the original's EMA does) and the rest are copied.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from .config import EMAConfig
from .sharding import as_part_of, local


class ModelEMA:
    def __init__(self, model: nn.Module, config: EMAConfig):
        self.model, self.config = model, config
        self.weights = EMAModel(
            self._parameters(),
            decay=config.decay,
            update_after_step=config.start,
            use_ema_warmup=config.warmup,
            min_decay=0.0 if config.warmup else config.decay,
        )
        self.buffers = {name: value.detach().clone() for name, value in model.named_buffers()}

    def _parameters(self) -> list[nn.Parameter]:
        return [local(p) for p in self.model.parameters() if p.requires_grad]

    def reset(self) -> None:
        """Begin anew from what the model is now."""
        self.__init__(self.model, self.config)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call after every optimiser step, with the number of steps finished; acts on every `interval`-th."""
        if step % self.config.interval:
            return
        # EMAModel counts its own calls, while the configurations count steps of the run
        self.weights.optimization_step = step - 1
        self.weights.step(self._parameters())
        decay = self.weights.cur_decay_value
        for name, value in self.model.named_buffers():
            kept = self.buffers[name]
            if value.is_floating_point() and decay:
                kept.lerp_(value, 1 - decay)
            else:
                kept.copy_(value)

    @contextmanager
    def swapped_in(self):
        """The model is its average inside, and itself again after."""
        parameters = self._parameters()
        own_buffers = {name: value.detach().clone() for name, value in self.model.named_buffers()}
        self.weights.store(parameters)
        self.weights.copy_to(parameters)
        self._set_buffers(self.buffers)
        try:
            yield self.model
        finally:
            self.weights.restore(parameters)
            self._set_buffers(own_buffers)

    @torch.no_grad()
    def _set_buffers(self, values: dict[str, Tensor]) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.copy_(values[name])

    def tensors(self) -> dict[str, Tensor]:
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        averages = zip(named, self.weights.shadow_params, strict=True)
        return {name: as_part_of(p, average) for (name, p), average in averages} | self.buffers

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

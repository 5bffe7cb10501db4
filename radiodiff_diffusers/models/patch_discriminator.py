"""The PatchGAN discriminator of VA-VAE and RadioDiff's VAE-GAN, with the tensor names of their checkpoints."""

from __future__ import annotations

import torch
from torch import nn


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of an image in [-1, 1]; `num_layers` strided convolutions, then two of stride 1.

    The layers are numbered in `main` as in the originals (`main.0.weight`, `main.2.weight`, ...), so that their
    checkpoints load. A 256 x 256 image gives 30 x 30 scores with three layers.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, num_layers: int = 3):
        super().__init__()
        layers = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for level in range(1, num_layers + 1):
            wider = width * min(2**level, 8)
            stride = 2 if level < num_layers else 1
            layers += [
                nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False),  # the norm has the bias
                nn.BatchNorm2d(wider),
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        layers.append(nn.Conv2d(channels, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        self.reset_parameters()

    def reset_parameters(self):
        """Convolutions N(0, 0.02), norms N(1, 0.02), norms' biases 0; the others stay PyTorch's."""
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.main(image)

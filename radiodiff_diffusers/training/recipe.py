"""What several recipes need to build their models: an autoencoder from a folder, weights to start from, AdamW."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..hub_names import could_be_on_the_hub
from ..memory import reuse_activations
from .checkpoints import find_problem
from .config import TrainConfig

logger = logging.getLogger(__name__)


def run_script(main: Callable[[], int]) -> None:
    """Leave with a recipe's exit code; what the user can put right ends in one line instead of a traceback."""
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:  # OSError: a file, folder or model that is not there, or no network
        sys.exit(f"error: {' '.join(str(error).split())}")


def make_adamw(model: nn.Module, train: TrainConfig, rate_factor: float = 1.0) -> torch.optim.AdamW:
    """AdamW on what is trained; PyTorch's fused kernel where it is faster (everywhere it exists)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    kind = torch.optim.AdamW
    if train.half_gradients:
        kind = HalfGradientAdamW
        for parameter in parameters:
            if parameter.ndim > 1:  # matrices and kernels are nearly all of the weights
                parameter.grad_dtype = torch.bfloat16
    return kind(
        parameters,
        lr=train.learning_rate * rate_factor,
        betas=tuple(train.adam_betas),
        weight_decay=train.weight_decay,
        fused=all(p.device.type in ("cpu", "cuda") for p in parameters),
    )


class HalfGradientAdamW(torch.optim.AdamW):
    """AdamW of float32 weights whose gradients are kept in bfloat16: an eighth less of weights, gradients and moments.

    Autocast computes the gradients of most matrices and kernels in bfloat16 anyway. They become float32 one parameter
    at a time, when it is stepped.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        groups = self.param_groups
        try:
            for group in groups:
                for parameter in group["params"]:
                    self.param_groups = [{**group, "params": [parameter]}]
                    with _float32_gradient(parameter):
                        super().step(closure)
        finally:
            self.param_groups = groups


@contextmanager
def _float32_gradient(parameter: nn.Parameter) -> Iterator[None]:
    half, dtype = parameter.grad, parameter.grad_dtype
    if half is None or half.dtype == torch.float32:
        yield
        return
    parameter.grad, parameter.grad_dtype = None, torch.float32
    parameter.grad = half.float()
    yield
    parameter.grad, parameter.grad_dtype = None, dtype
    parameter.grad = half


def load_frozen_vae(name: str, device: torch.device) -> nn.Module | None:
    """The autoencoder of a latent model, from a folder or the Hub, frozen; `none` for a model of pixels."""
    if name in ("none", None, ""):
        return None
    from diffusers import AutoencoderKL

    folder = existing(name, "model.vae", "; train it first (examples/vae_gan), or set model.vae none")
    subfolder = "vae" if (folder / "vae").is_dir() else None
    vae = AutoencoderKL.from_pretrained(name, subfolder=subfolder)
    reuse_activations(vae)
    return vae.requires_grad_(False).eval().to(device)


@torch.no_grad()
def warm_start(model: nn.Module, where: str, name: str) -> None:
    """Begin with other weights: a checkpoint's averages, a pipeline or model folder, or the Hub. Nothing else is
    taken.

    The run is a new one: its schedule, its averages and its place in the data begin anew.
    """
    path = existing(where)
    tensors = _checkpoint_tensors(path, name)
    if tensors is None:
        cls: Any = type(model)
        subfolder = name if not path.exists() or (path / name).is_dir() else None
        tensors = cls.from_pretrained(where, subfolder=subfolder).state_dict()
    own = model.state_dict()
    strange = [k for k in own if k not in tensors or tensors[k].shape != own[k].shape]
    strange += [k for k in tensors if k not in own]
    if strange:
        raise ValueError(
            f"train.init_from: {where} holds another model than the configuration asks for: {strange[0]} and "
            f"{len(strange) - 1} more tensors do not fit"
        )
    model.load_state_dict(tensors)
    logger.info("%s starts from the weights in %s", name, where)


def existing(where: str, key: str = "train.init_from", hint: str = "") -> Path:
    """What the configuration names as a path; it may also be a Hub id, owner/name, but nothing that is not there."""
    path = Path(where)
    is_file = path.suffix in (".pt", ".pth", ".ckpt", ".safetensors")
    is_id = could_be_on_the_hub(where) and not is_file and path.parts[0] != "runs"
    if not path.exists() and not is_id:
        raise ValueError(f"{key}: {where}: no such file or folder{hint}")
    return path


def _checkpoint_tensors(folder: Path, name: str) -> dict[str, torch.Tensor] | None:
    """Weights of a run's checkpoint, averaged where it has averages; None where this is no checkpoint."""
    if not (folder / "models.safetensors").exists():
        return None
    from safetensors.torch import load_file

    problem = find_problem(folder)
    if problem:
        raise ValueError(f"train.init_from: checkpoint {folder} is damaged: {problem}")
    tensors = load_file(folder / "models.safetensors")
    if (folder / "ema.safetensors").exists():
        tensors |= load_file(folder / "ema.safetensors")
    prefix = name + "."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@torch.no_grad()
def load_imagenet_encoder(unet: nn.Module) -> None:
    """Give a Swin-B condition encoder torchvision's ImageNet weights, as the original begins with."""
    from torchvision.models import Swin_B_Weights, swin_b

    if unet.config.condition_encoder != "swin":
        raise ValueError(
            f"model.encoder_weights imagenet is for the swin encoder, this one is "
            f"{unet.config.condition_encoder}: set none"
        )
    try:
        features = swin_b(weights=Swin_B_Weights.IMAGENET1K_V1).features.state_dict()
    except OSError as error:  # a failed download
        raise ValueError(
            f"the ImageNet weights of the condition encoder could not be downloaded ({error}); connect once, or start "
            "without them: model.encoder_weights none"
        ) from None
    own = unet.encoder.state_dict()
    loaded = {}
    for key, value in features.items():
        stage, _, rest = key.partition(".")
        number = int(stage)  # torchvision: patch embedding, stage, merging, stage, merging, ...
        place = (
            "patch_embed" if number == 0 else f"stages.{number // 2}" if number % 2 else f"merges.{number // 2 - 1}"
        )
        name = f"{place}.{rest}"
        if name in own and own[name].shape == value.shape:
            loaded[name] = value
    # what may stay as it was made: the first convolution, where the condition has other than three planes
    missing = [k for k in own if k not in loaded and not k.startswith("patch_embed.0.")]
    if missing:
        raise ValueError(f"the ImageNet weights do not fit this encoder: {missing[0]} and {len(missing) - 1} more")
    unet.encoder.load_state_dict(loaded, strict=False)

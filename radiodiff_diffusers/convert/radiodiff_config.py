"""Read the original RadioDiff's YAML files: what they say that the weights do not show."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

logger = logging.getLogger(__name__)

# the condition planes each of the original's data sets feeds, by its name in the files
_DATA_CHANNELS = {
    "radio": ["buildings", "transmitter", "buildings"],
    "IRT4": ["buildings", "transmitter", "buildings"],
    "DPMK": ["buildings", "transmitter", "k2"],
    "IRT4K": ["buildings", "transmitter", "k2"],
    "DPMCAR": ["buildings", "transmitter", "cars"],
    "DPMCARK": ["buildings", "transmitter", "cars", "k2", "k2"],
}


def original_ranges(channels: list[str]) -> list[list[float]] | None:
    """The range of each plane in training: with k2 among them the original does not scale the others' gray levels,
    which so run from -1 to 509. `None` where all run from -1 to 1."""
    if "k2" not in channels:
        return None
    return [[-1.0, 1.0] if name == "k2" else [-1.0, 509.0] for name in channels]


@dataclass
class OriginalConfig:
    """Settings of an original YAML file, as arguments of our classes."""

    unet: dict = field(default_factory=dict)
    scheduler: dict = field(default_factory=dict)
    scaling_factor: float | None = None
    num_inference_steps: int | None = None
    condition_channels: list[str] | None = None
    shapes: dict = field(default_factory=dict)

    def check(self, sizes: dict) -> None:
        """Compare with sizes read from the weights; a difference means they do not belong together."""
        for name, said in self.shapes.items():
            if name in sizes and sizes[name] != said:
                raise ValueError(f"the YAML file says {name} is {said}, the weights say {sizes[name]}.")


def read_original_config(path: str | Path) -> OriginalConfig:
    """
    Read a training or sampling file of the original.

    What is used: the windows and the Fourier scale of the U-Net, the smallest time, the latents' scale, the number of
    sampling steps, and the condition planes that follow from the data set's name. `objective: pred_noise` is a label
    that the latent model never reads: it predicts drift and noise whatever it says.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as a YAML file: {str(error).splitlines()[0]}.") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ValueError(f"{path} is no file of the original RadioDiff: it has no section 'model'.")
    if "unet" not in model:
        return OriginalConfig()  # an autoencoder's file says nothing its weights do not
    for name, wanted in (("model_type", "const_sde"), ("model_name", "cond_unet")):
        if model.get(name, wanted) != wanted:
            raise ValueError(f"{path}: {name} is {model[name]!r}; only {wanted!r} can be converted.")
    if model.get("scale_by_softsign"):
        raise ValueError(f"{path}: scale_by_softsign is on; only latents scaled by a factor can be converted.")
    if model.get("objective", "pred_KC") != "pred_KC":
        logger.info("%s: objective %s is a label there; the model predicts drift and noise", path, model["objective"])

    unet, data = model["unet"], content.get("data") or {}
    settings = OriginalConfig(
        scheduler={"eps": float(model.get("eps", 1e-4)), "num_train_timesteps": int(model.get("timesteps", 1000))},
        scaling_factor=model.get("scale_factor"),
        num_inference_steps=model.get("sampling_timesteps"),
        condition_channels=_DATA_CHANNELS.get(data.get("name")),
    )
    if unet.get("DPMCARK"):
        settings.condition_channels = _DATA_CHANNELS["DPMCARK"]
    windows = [unet.get("window_sizes1"), unet.get("window_sizes2")]
    if windows[0] is not None:
        if windows[1] not in (None, windows[0]) or any(window[0] != window[1] for window in windows[0]):
            raise ValueError(f"{path}: window_sizes1 and window_sizes2 must be equal and square, got {windows}.")
        settings.unet["window_sizes"] = [window[0] for window in windows[0]]
    if "fourier_scale" in unet:
        settings.unet["fourier_scale"] = float(unet["fourier_scale"])
    for ours, theirs in (
        ("base_channels", "dim"),
        ("channel_multipliers", "dim_mults"),
        ("in_channels", "channels"),
        ("condition_encoder", "cond_net"),
    ):
        if theirs in unet:
            settings.shapes[ours] = unet[theirs]
    return settings

"""Images of a class (a person's micro-Doppler spectrogram) by latent flow matching with LightningDiT."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from numbers import Integral, Real

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor

from radiodiff_diffusers.lora import LoraLoaderMixin
from radiodiff_diffusers.models.lightning_dit import LightningDiTTransformer2DModel
from radiodiff_diffusers.saving import SavedPipelineMixin

logger = logging.getLogger(__name__)

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from radiodiff_diffusers import LightningDiTPipeline

        >>> pipe = LightningDiTPipeline.from_pretrained("path/to/pipeline")
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = pipe(class_labels=[3, 3, 7], num_inference_steps=50, generator=generator).images
        ```
"""


class LightningDiTPipeline(SavedPipelineMixin, LoraLoaderMixin, DiffusionPipeline):
    r"""
    Class-conditioned generation with a flow-matching transformer on the latents of a tokenizer.

    The latents the transformer sees are normalised by `latents_mean` and `latents_std` of the tokenizer's
    configuration (see [`~radiodiff_diffusers.convert.vavae.set_latent_statistics`]).

    Args:
        vae ([`AutoencoderKL`]): Tokenizer.
        transformer ([`LightningDiTTransformer2DModel`]): Predicts the velocity from noise (time 0) to data (time 1).
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): Euler integration. Its `shift` is the default of
            `timestep_shift`, inverted: a timestep shift of 0.3 is a scheduler's shift of 1 / 0.3.
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ["latents"]
    _lora_loadable_modules = ["transformer"]
    transformer_name = "transformer"

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: LightningDiTTransformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ):
        super().__init__()
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)
        vae = getattr(self, "vae", None)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae else 16
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def num_timesteps(self):
        return self._num_timesteps

    @property
    def guidance_scale(self):
        return self._guidance_scale

    @property
    def interrupt(self):
        return self._interrupt

    def check_inputs(
        self,
        class_labels,
        num_inference_steps,
        guidance_scale,
        guidance_channels,
        guidance_interval,
        timestep_shift,
        generator,
        height,
        width,
        latents,
        output_type,
        callback_on_step_end_tensor_inputs,
    ):
        """Everything that can be wrong with a call, said in one line before any work is done."""
        null = self.transformer.config.num_classes
        bad = [label for label in class_labels if not 0 <= label <= null]
        if not class_labels or bad:
            raise ValueError(
                f"class_labels must be one or more of 0 ... {null - 1} (or {null}, no class)"
                + (f", given {bad[0]}" if bad else ", given none")
            )
        if not _is_integer(num_inference_steps) or num_inference_steps < 2:
            raise ValueError(
                f"num_inference_steps is {num_inference_steps!r}: it counts the points in time, at least 2"
            )
        if not _is_finite(guidance_scale):
            raise ValueError(f"guidance_scale is {guidance_scale!r}: expected a number (1 or less for no guidance)")
        channels = self.transformer.config.in_channels
        if guidance_channels != "all" and not (_is_integer(guidance_channels) and 1 <= guidance_channels <= channels):
            raise ValueError(f'guidance_channels is {guidance_channels!r}: expected "all" or 1 ... {channels}')
        numbers = len(guidance_interval) == 2 and all(_is_finite(one) for one in guidance_interval)
        if not numbers or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            given = tuple(guidance_interval)
            raise ValueError(f"guidance_interval is {given}: expected 0 <= start <= end <= 1 (1 is data)")
        if timestep_shift is not None and not (_is_finite(timestep_shift) and timestep_shift >= 0):
            raise ValueError(f"timestep_shift is {timestep_shift!r}: expected 0 (none) or a positive number")
        for name, side in (("height", height), ("width", width)):
            if side is not None and not (_is_integer(side) and side > 0):
                raise ValueError(f"{name} is {side!r}: expected pixels, or None for the transformer's own size")
        if latents is not None and not isinstance(latents, torch.Tensor):
            raise ValueError(f"latents must be a torch.Tensor; got {type(latents).__name__}")
        single = generator if isinstance(generator, list) else [generator]
        if any(one is not None and not isinstance(one, torch.Generator) for one in single):
            raise ValueError(f"generator is {generator!r}: expected a torch.Generator, a list of them, or a seed")
        if self.scheduler.config.get("use_dynamic_shifting"):
            raise ValueError("the scheduler has use_dynamic_shifting=True: set it to False and use timestep_shift")
        if isinstance(generator, list) and len(generator) != len(class_labels):
            raise ValueError(f"{len(generator)} generators for {len(class_labels)} class labels: give one for each")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f'output_type is {output_type!r}: expected "pil", "np", "pt" or "latent"')
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"a callback can ask for {self._callback_tensor_inputs}, not for {sorted(unknown)}")

    def prepare_latents(self, batch_size, height, width, device, generator, latents):
        """The noise to start from, in fp32; `latents` as given if they fit."""
        scale, patch = self.vae_scale_factor, self.transformer.config.patch_size
        size = self.transformer.config.sample_size * scale
        height, width = height or size, width or size
        if height % (scale * patch) or width % (scale * patch):
            raise ValueError(f"height and width must be multiples of {scale * patch}, given {height} x {width}")
        shape = (batch_size, self.transformer.config.in_channels, height // scale, width // scale)
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}, expected {shape}")
        return latents.to(device=device, dtype=torch.float32)

    def prepare_timesteps(self, num_inference_steps, timestep_shift, device):
        """Set the scheduler to n points in time from 0 to 1, so n - 1 steps, and return its timesteps.

        The shift moves points towards noise: t becomes s t / (1 + (s - 1) t). With sigma = 1 - t this is diffusers'
        shift by 1 / s, and `sigmas` handed over here are shifted by the scheduler itself.
        """
        shift = self.scheduler.config.shift
        if timestep_shift is not None:
            shift = 1.0 / timestep_shift if timestep_shift > 0 else 1.0
        self.scheduler.set_shift(shift)
        sigmas = np.linspace(1.0, 0.0, num_inference_steps)[:-1]
        self.scheduler.set_timesteps(sigmas=sigmas.tolist(), device=device)
        return self.scheduler.timesteps

    def predict_velocity(self, latents, time, class_labels, guided, guidance_scale, guidance_channels):
        """The transformer's velocity; when guided, class and null class go through it in one batch."""
        sample = latents.to(self.transformer.dtype)
        if not guided:
            return self.transformer(sample, time, class_labels).sample.float()
        null_labels = torch.full_like(class_labels, self.transformer.config.num_classes)
        labels = torch.cat([class_labels, null_labels])
        both = self.transformer(torch.cat([sample, sample]), time, labels).sample.float()
        velocity, null_velocity = both.chunk(2)
        channels = None if guidance_channels == "all" else guidance_channels
        velocity = velocity.clone()
        velocity[:, :channels] = torch.lerp(null_velocity[:, :channels], velocity[:, :channels], guidance_scale)
        return velocity

    def decode_latents(self, latents):
        """Images in [-1, 1] from normalised latents."""
        config = self.vae.config
        latents = latents / config.scaling_factor
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = (
                torch.tensor(v, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1)
                for v in (config.latents_mean, config.latents_std)
            )
            latents = latents * std + mean
        else:
            logger.warning("the tokenizer's configuration has no latents_mean and latents_std: none are applied")
        return self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        class_labels: int | list[int] | torch.Tensor,
        num_inference_steps: int = 50,
        guidance_scale: float = 4.0,
        guidance_channels: str | int = "all",
        guidance_interval: float | tuple[float, float] | None = None,
        timestep_shift: float | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | int | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple:
        r"""
        Make one image for each label.

        Args:
            class_labels (`int` or list of `int`): A class for each image; `num_classes` stands for no class.
            num_inference_steps (`int`, defaults to 50): Points in time from noise to data, both ends counted, as the
                original counts them: the transformer is run `num_inference_steps - 1` times.
            guidance_scale (`float`, defaults to 4.0): How far the velocity goes from the null class's towards (and
                beyond) the class's own. No guidance at 1 or less.
            guidance_channels (`"all"` or `int`, defaults to `"all"`): Guide only the first so many latent channels;
                3 reproduces the original's samples (which need a larger scale).
            guidance_interval (`float` or pair, *optional*): Times (0 noise, 1 data, after the shift) between which
                guidance is on; a single number is the start.
            timestep_shift (`float`, *optional*): Below 1 more steps are spent near the noise; the original uses 0.3
                and 0 for none. Defaults to what the scheduler is configured for.
            height, width (`int`, *optional*): Size in pixels; the transformer's own size when left out.
            generator (`torch.Generator`, a seed, or a list, *optional*): Decides the noise; one generator for all
                images, or a list with one for each.
            latents (`torch.Tensor`, *optional*): The noise itself.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` (both in [0, 1]), or `"latent"` (what the
                transformer sees, normalised).
            return_dict (`bool`, defaults to `True`): Return an [`ImagePipelineOutput`], else a tuple.
            callback_on_step_end (callable, *optional*): Called as `callback(pipe, step, timestep, kwargs)` after each
                step; may return changed tensors.
            callback_on_step_end_tensor_inputs (list of `str`): Tensors the callback wants: `latents`.

        Examples:

        Returns:
            [`ImagePipelineOutput`] or `tuple`: the images.
        """
        # 1. inputs
        try:
            labels = torch.as_tensor(class_labels).flatten()
            whole = not labels.numel() or not (labels.is_floating_point() or labels.dtype == torch.bool)
        except (TypeError, ValueError, RuntimeError):
            whole = False
        if not whole:
            raise ValueError(f"class_labels must be integers, given {class_labels!r}")
        if guidance_interval is None:
            guidance_interval = (0.0, 1.0)
        elif not isinstance(guidance_interval, (tuple, list)):
            guidance_interval = (guidance_interval, 1.0)
        if _is_integer(generator):
            generator = torch.Generator().manual_seed(int(generator))
        self.check_inputs(
            labels.tolist(),
            num_inference_steps,
            guidance_scale,
            guidance_channels,
            guidance_interval,
            timestep_shift,
            generator,
            height,
            width,
            latents,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        self._guidance_scale = guidance_scale
        self._interrupt = False
        device = self._execution_device
        labels = labels.to(device=device, dtype=torch.long)

        # 2. noise and times
        latents = self.prepare_latents(len(labels), height, width, device, generator, latents)
        timesteps = self.prepare_timesteps(num_inference_steps, timestep_shift, device)
        self._num_timesteps = len(timesteps)

        # 3. integrate from noise to data
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, timestep in enumerate(timesteps):
                if self._interrupt:
                    continue
                time = 1.0 - timestep / self.scheduler.config.num_train_timesteps
                start, end = guidance_interval
                guided = guidance_scale > 1 and start - 1e-6 <= float(time) <= end + 1e-6
                velocity = self.predict_velocity(latents, time, labels, guided, guidance_scale, guidance_channels)
                # the scheduler goes from sigma = 1 (noise) to 0, against our time
                latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]

                if callback_on_step_end is not None:
                    callback_kwargs = {}
                    for name in callback_on_step_end_tensor_inputs:
                        callback_kwargs[name] = locals()[name]
                    callback_outputs = callback_on_step_end(self, i, timestep, callback_kwargs) or {}
                    latents = callback_outputs.pop("latents", latents)
                progress_bar.update()

        # 4. decode
        images = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(self.decode_latents(latents), output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)


def _is_integer(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)

"""Radio maps of scenes by RadioDiff's diffusion, in latents or in pixels, at any size."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.utils import BaseOutput, replace_example_docstring

from radiodiff_diffusers.channels import check_channels, condition_planes, share_walls
from radiodiff_diffusers.lora import LoraLoaderMixin
from radiodiff_diffusers.memory import return_free_memory, reuse_activations
from radiodiff_diffusers.models.mean_map import MeanMapModel
from radiodiff_diffusers.models.radiodiff_unet import RadioDiffUNet2DModel
from radiodiff_diffusers.saving import SavedPipelineMixin
from radiodiff_diffusers.scene import GainScale, RadioMap, Scene
from radiodiff_diffusers.schedulers.scheduling_const_sde import ConstSDEScheduler

from .samples import (
    HALF_OF_95_PERCENT,
    draw_noise,
    draw_shifts,
    one_each,
    samples_by_error,
    samples_round,
    variance_of_walls,
    views_of,
    with_walls_moved,
)
from .tiles import Tile, blended, cut

logger = logging.getLogger(__name__)

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from radiodiff_diffusers import DEFAULT_MODEL, RadioDiffPipeline, Scene

        >>> pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL)
        >>> scene = Scene("city.png", transmitter=(87, 120))
        >>> radio_map = pipe(scene).maps[0]
        >>> radio_map.gain_db[40, 200]
        >>> radio_map.save("map.png")
        ```
"""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
GAIN_SCALES = {"radiomapseer": GainScale.RADIOMAPSEER, "indoor": GainScale.INDOOR}
# Maps of more pixels go through in tiles unless `tile_size` says otherwise; so many pixels share a batch.
LARGEST_PIECE = 1024 * 1024
PIXELS_A_BATCH = 16 * 256 * 256
WALLS_MOVED = 4  # times, for the error of a mean model


@dataclass
class RadioDiffPipelineOutput(BaseOutput):
    """
    What [`RadioDiffPipeline`] gives.

    Args:
        images: The maps as pictures, one a scene, on the model's gray scale: a list of 8-bit PIL images, or for
            `output_type` `"np"` `(n, height, width, 1)` and for `"pt"` `(n, 1, height, width)` in [0, 1] (a list where
            the scenes differ in size). For `"latent"` the final samples, `num_maps` in a row for each scene.
        maps (`list[RadioMap]`): The maps in dB, one a scene: the mean of its samples, with their standard deviation in
            `std_db` when there are several. `None` for `"latent"`.
        samples (`list[np.ndarray]`): Each scene's single samples, `(num_maps, height, width)` in dB.
    """

    images: Any
    maps: list[RadioMap] | None = None
    samples: list[np.ndarray] | None = None


@dataclass(frozen=True)
class _Call:
    """What a call of the pipeline asks of all its scenes."""

    num_maps: int
    one_step: bool  # from an empty start: the mean map
    tile_size: int | None
    tile_overlap: int | None
    device: torch.device
    keep_latents: bool
    callback: Callable | None
    callback_names: list[str]


class RadioDiffPipeline(SavedPipelineMixin, LoraLoaderMixin, DiffusionPipeline):
    r"""
    From what is known of a place to its radio map.

    Args:
        unet ([`RadioDiffUNet2DModel`]): Predicts drift and noise from a noisy map and the scene's condition channels.
        scheduler ([`ConstSDEScheduler`]): Goes from noise to a map.
        vae ([`AutoencoderKL`], *optional*): Between latents and maps; a model without one works on pixels.
        num_inference_steps (`int`, defaults to 5): The number of steps that suits the model.
        gain_scale (`str`, defaults to `"radiomapseer"`): What its gray values mean: `"radiomapseer"` or `"indoor"`.
        mean_map (`bool`, defaults to `False`): The model was trained to give the mean map in one step from no noise at
            all: where one step is asked, a single map starts from zeros.
        wall_jitter (`float`, defaults to 0): A mask shows walls to a pixel. Where several maps of a scene without
            outlines are asked of the U-Net, each sees the walls moved by up to this many pixels, so that their spread
            tells what the picture leaves open.
        mean_model ([`MeanMapModel`], *optional*): Gives that mean map of a scene in the U-Net's place, in a fraction
            of the time, and how wrong it may be. An adapter of the U-Net, noise to start from, or ready condition
            planes keep to the U-Net.
    """

    model_cpu_offload_seq = "mean_model->unet->vae"
    _optional_components = ["vae", "mean_model"]
    _callback_tensor_inputs = ["latents"]
    _lora_loadable_modules = ["unet"]
    unet_name = "unet"
    _set_aside: MeanMapModel | None = None  # while adapters are fused into the U-Net

    def __init__(
        self,
        unet: RadioDiffUNet2DModel,
        scheduler: ConstSDEScheduler,
        vae: AutoencoderKL | None = None,
        num_inference_steps: int = 5,
        gain_scale: str = "radiomapseer",
        mean_map: bool = False,
        wall_jitter: float = 0.0,
        mean_model: MeanMapModel | None = None,
    ):
        super().__init__()
        if gain_scale not in GAIN_SCALES:
            raise ValueError(f"gain_scale is {gain_scale!r}: expected one of {', '.join(GAIN_SCALES)}")
        if unet is not None:
            check_channels(unet.config.condition_channels)
        if mean_model is not None:
            check_channels(mean_model.error_channels)
            mean_model.to(memory_format=torch.channels_last)  # a fifth faster on CPUs
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, mean_model=mean_model)
        self.register_to_config(
            num_inference_steps=num_inference_steps, gain_scale=gain_scale, mean_map=mean_map, wall_jitter=wall_jitter
        )
        self._kept_walls = OrderedDict()  # of the last cities, for the next transmitters in them
        vae = getattr(self, "vae", None)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae else 1

    @property
    def num_timesteps(self):
        return self._num_timesteps

    @property
    def interrupt(self):
        return self._interrupt

    @property
    def gain_scale(self) -> GainScale:
        return GAIN_SCALES[self.config.gain_scale]

    def check_inputs(
        self,
        shapes,
        num_inference_steps,
        num_maps,
        generator,
        latents,
        output_type,
        tile_size,
        tile_overlap,
        names,
    ):
        """Everything that can be wrong with a call, said in one line before any work is done."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1; got {num_inference_steps}")
        if num_maps < 1:
            raise ValueError(f"num_maps must be at least 1; got {num_maps}")
        if isinstance(generator, (list, tuple)) and len(generator) != len(shapes):
            raise ValueError(
                f"{len(generator)} generators for {len(shapes)} scenes: give one for each, or one for all"
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type is {output_type!r}: expected one of {', '.join(OUTPUT_TYPES)}")
        if tile_size is not None and tile_size < 4 * self.vae_scale_factor:
            raise ValueError(f"tile_size is {tile_size}: expected at least {4 * self.vae_scale_factor} pixels")
        if tile_overlap is not None and tile_overlap < 0:
            raise ValueError(f"tile_overlap is {tile_overlap}: expected 0 or more pixels")
        sides = [self._tile_side(*shape, tile_size) for shape in shapes]
        side = min((side for side in sides if side is not None), default=None)
        if side is not None and tile_overlap is not None and 2 * tile_overlap > side:
            raise ValueError(f"tile_overlap {tile_overlap} is more than half of a tile's {side} pixels")
        if latents is not None:
            if not isinstance(latents, torch.Tensor):
                raise ValueError(f"latents must be a torch.Tensor; got {type(latents).__name__}")
            if len(set(shapes)) > 1:
                raise ValueError("latents cannot be given for scenes of several sizes: call once a size")
            if len(latents) != len(shapes) * num_maps:
                raise ValueError(f"{len(latents)} latents for {len(shapes) * num_maps} maps: give one for each")
        unknown = set(names) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"a callback can ask for {self._callback_tensor_inputs}, not for {sorted(unknown)}")

    def _listed(self, scene: Scene | list[Scene] | torch.Tensor) -> list[Scene] | list[torch.Tensor]:
        """What was given as a list of scenes, or of condition planes `(channels, height, width)`."""
        if isinstance(scene, torch.Tensor):
            channels = self.condition_channels
            planes = scene[None] if scene.ndim == 3 else scene
            if planes.ndim != 4 or planes.shape[1] != len(channels):
                raise ValueError(
                    f"a condition tensor must be (batch, {len(channels)}, height, width) with the channels "
                    f"{', '.join(channels)}; got shape {tuple(scene.shape)}"
                )
            if not torch.isfinite(planes).all():
                raise ValueError("the condition tensor has values that are not finite")
            return list(planes)
        scenes = list(scene) if isinstance(scene, (list, tuple)) else [scene]
        for one in scenes:
            if not isinstance(one, Scene):
                raise ValueError(
                    f"expected a Scene, a list of scenes or a condition tensor; got {type(one).__name__}. "
                    "Make one with Scene(buildings, transmitter=(x, y))"
                )
        if not scenes:
            raise ValueError("no scene was given: pass a Scene, a list of scenes, or a condition tensor")
        return scenes

    def prepare_conditions(
        self, scene: Scene | list[Scene] | torch.Tensor, channels: list[str] | None = None
    ) -> list[torch.Tensor]:
        """Each scene's condition planes, `(channels, height, width)`; those of the U-Net where none are named."""
        given = self._listed(scene)
        if isinstance(given[0], torch.Tensor):
            return given
        channels = channels or self.condition_channels

        def planes_of(one: Scene) -> torch.Tensor:
            return torch.from_numpy(condition_planes(one, channels))

        if len(given) == 1:  # in a thread of its own it would begin with no memory at hand
            share_walls(given, channels, map, self._kept_walls)
            return [planes_of(given[0])]
        with ThreadPoolExecutor(max_workers=min(len(given), 8)) as pool:  # the ray kernels run without the GIL
            share_walls(given, channels, pool.map, self._kept_walls)
            return list(pool.map(planes_of, given))

    def fuse_lora(self, *args, **kwargs):
        """Add the active adapters to the U-Net's weights; the mean model knows nothing of them and is set aside."""
        super().fuse_lora(*args, **kwargs)
        self._set_aside = self._set_aside or self.mean_model
        self.register_modules(mean_model=None)

    def unfuse_lora(self, *args, **kwargs):
        """Undo `fuse_lora`."""
        super().unfuse_lora(*args, **kwargs)
        self.register_modules(mean_model=self._set_aside or self.mean_model)
        self._set_aside = None

    def prepare_latents(self, shape, generators, num_maps, device, latents=None) -> torch.Tensor:
        """The noise to start from, float32; `latents` as given if they fit."""
        if latents is None:
            return draw_noise(shape, generators, num_maps, device)
        expected = (len(generators) * num_maps, *shape)
        if tuple(latents.shape) != expected:
            raise ValueError(f"latents have the shape {tuple(latents.shape)}, expected {expected}")
        return latents.to(device=device, dtype=torch.float32)

    def denoise(
        self, latents, condition, num_maps, noises, progress, callback=None, callback_names=()
    ) -> torch.Tensor:
        """All steps for one batch (of whole maps or of tiles): its final samples, and their errors where wanted."""
        condition = condition.to(latents.device)  # in float32: the model rounds where it can afford to
        features = self.unet.encode_condition(condition)
        if num_maps > 1:
            features = features.repeat_interleave(num_maps)
        for i, t in enumerate(self.scheduler.timesteps):
            if self.interrupt:
                continue
            output, *error = self.unet(
                latents, t, condition_features=features, return_dict=False, return_error=self._error_wanted
            )
            latents = self.scheduler.step(output, t, latents, variance_noise=noises(i), return_dict=False)[0]
            if callback is not None:
                given = {"latents": latents}
                kwargs = {}
                for name in callback_names:
                    kwargs[name] = given[name]
                latents = (callback(self, i, t, kwargs) or {}).get("latents", latents)
            progress.update()
        return torch.cat([latents, *error], dim=1) if self._error_wanted else latents

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Maps in [-1, 1], `(batch, 1, height, width)`, from final samples."""
        if self.vae is None:
            return latents
        return_free_memory()  # decoding is the moment of most memory
        reuse_activations(self.vae.decoder)
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        latents = latents.contiguous(memory_format=torch.channels_last)  # a fifth faster on CPUs
        return self.vae.decode(latents, return_dict=False)[0].float().contiguous()

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        scene: Scene | list[Scene] | torch.Tensor,
        num_inference_steps: int | None = None,
        num_maps: int = 1,
        generator: torch.Generator | int | list[torch.Generator | int] | None = None,
        latents: torch.Tensor | None = None,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ("latents",),
    ) -> RadioDiffPipelineOutput | tuple:
        r"""
        Predict the radio map of every scene.

        Args:
            scene (`Scene`, a list of them, or `torch.Tensor`): What is known; scenes may differ in size. A tensor
                holds ready condition planes, `(batch, channels, height, width)` in [-1, 1].
            num_inference_steps (`int`, *optional*): Steps of the scheduler; the model's own number where left out.
            num_maps (`int`, defaults to 1): Samples a scene. Several give their mean and standard deviation. What
                tells them apart is noise; with an error map (the mean model's, or else the U-Net's) how far each is
                off, by the error that is expected; of a U-Net with `wall_jitter` also where the walls are.
            generator (`torch.Generator` or `int`, or a list with one for each scene, *optional*): Decides everything
                that is random. One generator (or a seed) serves every scene from its present state, so that a scene's
                map does not depend on the others in the call.
            latents (`torch.Tensor`, *optional*): The noise to start from, in place of drawing it.
            tile_size (`int`, *optional*): Side in pixels of the tiles that a larger map is cut into; the model's own
                size for maps above a megapixel where left out. Memory stays bounded, time grows with the area.
            tile_overlap (`int`, *optional*): Pixels that neighbouring tiles share; a quarter of a tile where left out.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, defaults to `True`): Give a [`RadioDiffPipelineOutput`] rather than a tuple.
            callback_on_step_end (`Callable`, *optional*): Called as `callback(pipe, step, timestep, kwargs)` after
                each step of each batch; may return `{"latents": ...}`.
            callback_on_step_end_tensor_inputs (`list[str]`): What the callback's `kwargs` hold.

        Examples:

        Returns:
            [`RadioDiffPipelineOutput`] or `tuple`: images, maps in dB, and single samples.
        """
        # 1. Check the call, compute the scenes' channels
        steps = self.config.num_inference_steps if num_inference_steps is None else num_inference_steps
        given = self._listed(scene)
        self.check_inputs(
            [tuple(one.shape[-2:]) for one in given], steps, num_maps, generator, latents, output_type, tile_size,
            tile_overlap, callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        one_step = steps == 1 and latents is None and self.config.mean_map
        if self.config.mean_map and self.config.num_inference_steps == 1 < steps:
            logger.warning("this model was made to give its map in one step: %d steps give a far worse one", steps)
        own = one_each(generator, len(given))
        self._interrupt = False
        by_mean_model = (
            one_step and output_type != "latent" and self._has_mean_model_for(given[0], callback_on_step_end)
        )
        # the pipeline's device is looked up through all modules, which takes half as long as the mean model itself
        own_device = by_mean_model and not hasattr(self.mean_model, "_hf_hook")
        device = self.mean_model.device if own_device else self._execution_device
        self.scheduler.set_timesteps(steps, device=device)
        self._num_timesteps = len(self.scheduler.timesteps)

        # 2. The samples of every scene
        call = _Call(
            num_maps, one_step, tile_size, tile_overlap, device, output_type == "latent", callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )  # fmt: skip
        samples = (
            self._mean_maps(given, own, call) if by_mean_model else self._diffused_maps(given, own, latents, call)
        )

        # 3. From the network's [-1, 1] to dB and pictures
        self.maybe_free_model_hooks()
        if output_type == "latent":
            same = len({r.shape for r in samples}) == 1
            output = RadioDiffPipelineOutput(images=torch.cat(samples) if same else samples)
        else:
            output = self._finish(samples, given, output_type)
        return output if return_dict else output.to_tuple()

    def _has_mean_model_for(self, first, callback) -> bool:
        """Whether the mean model can stand in for the U-Net: it knows scenes, and nothing of adapters and steps."""
        if self.mean_model is None or callback is not None or not isinstance(first, Scene):
            return False
        return not self.active_adapters

    def _mean_maps(self, scenes: list[Scene], generators: list, call: _Call) -> list[torch.Tensor]:
        """Every scene's samples by the mean model: its one map, or several round it, as far off as it expects to be
        and, where a mask tells walls to half a pixel only, as far as moved walls change it."""
        if call.num_maps == 1:
            return [one[None] for one in self._by_mean_model(scenes, call)]
        if not self.mean_model.config.error_map:
            raise ValueError(
                "the mean model does not say how wrong its maps are (error_map), so several of a scene would be the "
                "same: ask for one, or set pipe.mean_model = None for the U-Net's"
            )
        moved: list[Scene] = []
        counts = []
        for scene, random in zip(scenes, generators, strict=True):
            guessed = self.config.wall_jitter and scene.polygons is None and scene.raster != "radiomapseer"
            shifts = draw_shifts(WALLS_MOVED if guessed else 0, self.config.wall_jitter, random)
            moved += [with_walls_moved(scene, shift) for shift in shifts]
            counts.append(len(shifts))
        others = iter(self._by_mean_model(moved, call) if moved else [])
        samples = []
        made = self._by_mean_model(scenes, call, with_error=True)
        for scene, one, count, random in zip(scenes, made, counts, generators, strict=True):
            deviation = one[1:] * HALF_OF_95_PERCENT
            if count:
                variance = variance_of_walls(scene, torch.stack([one[:1], *islice(others, count)]))
                deviation = (deviation.square() + variance).sqrt()
            samples.append(samples_round(one[:1], deviation, call.num_maps, random))
        return samples

    def _by_mean_model(self, scenes: list[Scene], call: _Call, with_error: bool = False) -> list[torch.Tensor]:
        """The mean model's map of every scene, and its error where wanted, `(1 or 2, height, width)`."""
        model = self.mean_model
        conditions = self.prepare_conditions(
            scenes, model.error_channels if with_error else model.config.condition_channels
        )
        batches = list(self._batches(conditions, 1, call, factor=1))
        results: list[torch.Tensor | None] = [None] * len(scenes)
        with self.progress_bar(total=sum(len(tiles) for _, tiles in batches)) as progress:
            for rows, tiles in batches:
                condition = _together(conditions, rows)

                def map_of(tile: Tile, condition=condition) -> torch.Tensor:
                    made = model(condition[tile.window].to(call.device), return_error=with_error)
                    progress.update()
                    return torch.cat(made, dim=1) if with_error else made

                for row, whole in zip(rows, blended(tiles, map(map_of, tiles)), strict=True):
                    results[row] = whole
        return results

    def _diffused_maps(
        self, given: list, generators: list, latents: torch.Tensor | None, call: _Call
    ) -> list[torch.Tensor]:
        """Every scene's samples (or latents) by the scheduler's steps. Scenes of one size share batches; a map too
        large for one piece goes alone, in tiles."""
        num_maps, jitter = call.num_maps, self.config.wall_jitter if call.num_maps > 1 else 0.0
        self._error_wanted = call.one_step and num_maps > 1 and self.unet.config.error_map
        views, own, counts = views_of(given, num_maps, generators, jitter, call.one_step, self._error_wanted)
        # samples are drawn from noise, but those of an error map after the map, and moved walls make their own
        walls_move = jitter and isinstance(given[0], Scene)
        draws = 1 if self._error_wanted or walls_move else num_maps
        conditions = views if isinstance(views[0], torch.Tensor) else self.prepare_conditions(views)
        batches = list(self._batches(conditions, draws, call, self.vae_scale_factor))
        results: list[torch.Tensor | None] = [None] * len(conditions)
        with self.progress_bar(total=sum(len(tiles) for _, tiles in batches) * self._num_timesteps) as progress:
            for rows, tiles in batches:
                start = None if latents is None else torch.cat([latents[r * draws : (r + 1) * draws] for r in rows])
                final = self._run_batch(
                    _together(conditions, rows), [own[row] for row in rows], start, draws, tiles, progress, call
                )
                for row, result in zip(rows, final.split(draws), strict=True):
                    results[row] = result
        samples = [
            torch.cat(results[end - count : end]) for end, count in zip(accumulate(counts), counts, strict=True)
        ]
        if self._error_wanted:
            spread = zip(given, samples, generators, strict=True)
            samples = [samples_by_error(scene, one[:, :1], one[:, 1:], num_maps, rng) for scene, one, rng in spread]
        return [one.expand(num_maps, -1, -1, -1) for one in samples]  # where one map is all of them

    def _tile_side(self, height: int, width: int, tile_size: int | None) -> int | None:
        """The side of the tiles for a map of this size; `None` where it goes through in one piece."""
        if tile_size is not None or height * width <= LARGEST_PIECE:
            return tile_size
        native = self.unet.config.sample_size
        return (native if isinstance(native, int) else max(native)) * self.vae_scale_factor

    def _batches(
        self, conditions: list, num_maps: int, call: _Call, factor: int
    ) -> Iterator[tuple[list[int], list[Tile]]]:
        """Which scenes go together, and the tiles they are cut into (one tile is the whole map)."""
        by_size: dict[tuple[int, int], list[int]] = {}
        for row, condition in enumerate(conditions):
            by_size.setdefault(tuple(condition.shape[-2:]), []).append(row)
        for (height, width), rows in by_size.items():
            side = self._tile_side(height, width, call.tile_size)
            tiles = cut(height, width, side, call.tile_overlap, factor)
            pixels = height * width if side is None else min(height, side) * min(width, side)
            count = max(1, PIXELS_A_BATCH // (pixels * num_maps))
            if len(tiles) > 1:
                count = 1
            for start in range(0, len(rows), count):
                yield rows[start : start + count], tiles

    def _run_batch(
        self,
        condition: torch.Tensor,
        generators: list,
        latents,
        num_maps: int,
        tiles: list[Tile],
        progress,
        call: _Call,
    ) -> torch.Tensor:
        """Final maps in [-1, 1] (or latents) of scenes of one size."""
        factor = self.vae_scale_factor
        height, width = condition.shape[-2:]
        # a border that the autoencoder's strides do not divide is continued with its last pixels, and cut off at the
        # end
        condition = F.pad(condition, (0, -width % factor, 0, -height % factor), mode="replicate")
        shape = (self.unet.config.in_channels, condition.shape[-2] // factor, condition.shape[-1] // factor)
        if latents is None and self.config.mean_map and num_maps == 1 and self._num_timesteps == 1:
            latents = torch.zeros(len(condition), *shape)
        latents = self.prepare_latents(shape, generators, num_maps, call.device, latents)
        # every tile sees its part of the same noise, whatever the order of the tiles
        drawn: dict[int, torch.Tensor] = {}

        def noise_of(step: int) -> torch.Tensor | None:
            if self.scheduler.config.get("solver") == "ode" or step + 1 == self._num_timesteps:
                return None
            if step not in drawn:
                drawn[step] = draw_noise(shape, generators, num_maps, call.device)
            return drawn[step]

        def map_of(tile: Tile) -> torch.Tensor:
            small = tile.scaled(factor)

            def noise_in_tile(step: int) -> torch.Tensor | None:
                noise = noise_of(step)
                return None if noise is None else noise[small.window]

            final = self.denoise(
                latents[small.window],
                condition[tile.window],
                num_maps,
                noise_in_tile,
                progress,
                call.callback,
                call.callback_names,
            )
            return final if call.keep_latents or self._error_wanted else self.decode_latents(final)[:, :1]

        places = [tile.scaled(factor) for tile in tiles] if call.keep_latents else tiles
        total = blended(places, map(map_of, tiles))
        return total if call.keep_latents else total[..., :height, :width]

    def _finish(self, results, given, output_type) -> RadioDiffPipelineOutput:
        maps, samples = [], []
        for result, scene in zip(results, given, strict=True):
            gain = self.gain_scale.from_unit(result[:, 0].numpy())
            if isinstance(scene, Scene):
                np.copyto(gain, self.gain_scale.floor_db, where=scene.footprint)
            samples.append(gain)
            several = len(gain) > 1
            maps.append(
                RadioMap(
                    gain.mean(0),
                    scale=self.gain_scale,
                    metres_per_pixel=scene.metres_per_pixel if isinstance(scene, Scene) else 1.0,
                    std_db=gain.std(0, ddof=1) if several else None,
                )
            )
        images: Any = [one.to_image() for one in maps] if output_type == "pil" else [one.gray / 255 for one in maps]
        if output_type == "np":
            images = [image[..., None] for image in images]
            images = np.stack(images) if len({image.shape for image in images}) == 1 else images
        elif output_type == "pt":
            images = [torch.from_numpy(image)[None] for image in images]
            images = torch.stack(images) if len({image.shape for image in images}) == 1 else images
        return RadioDiffPipelineOutput(images=images, maps=maps, samples=samples)


def _together(planes: list[torch.Tensor], rows: list[int]) -> torch.Tensor:
    """A batch of some of them, without a copy where it is one."""
    return planes[rows[0]][None] if len(rows) == 1 else torch.stack([planes[row] for row in rows])

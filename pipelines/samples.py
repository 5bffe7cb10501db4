"""What tells the samples of a scene apart: who draws what, walls that move in their pixels, expected errors."""

from __future__ import annotations

from numbers import Integral

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from radiodiff_diffusers.scene import Scene

# How samples are spread by a model's error map: 95 % of a Student distribution with two degrees of freedom lie within
# 4.3 of its scale; the rest, see `samples_by_error`, was fitted to simulated maps of a town seen as masks.
HALF_OF_95_PERCENT = 4.3 / 2
WALLS_WEIGHT, STANDING_STILL, SMOOTHED = 1.7, 0.004, 1.5  # none, half the map's scale, pixels


def views_of(
    given: list, num_maps: int, generators: list, jitter: float, one_step: bool, with_error: bool
) -> tuple[list, list, list[int]]:
    """The maps to compute for `num_maps` samples of every scene: scenes (or planes), a generator for each, and how
    many of them belong to each of those given.

    The walls of a mask lie elsewhere in their pixels in every view, up to `jitter` pixels off; where the samples are
    to be spread by the expected error, a first view has them where they are. Where they are known, or only planes are,
    one view has to do: the samples differ by noise, by the expected error, or not at all.
    """
    views, own, counts = [], [], []
    for one, random in zip(given, generators, strict=True):
        known = isinstance(one, Scene) and one.polygons is not None
        # nothing drawn and nothing moved (cars are masks, too): one map is all of them
        same = one_step and known and (with_error or one.cars is None)
        if not jitter or not isinstance(one, Scene) or same:
            views, own, counts = [*views, one], [*own, random], [*counts, 1]
            continue
        shifts = draw_shifts(num_maps, jitter, random)
        seeds = torch.randint(2**62, (num_maps,), generator=random, device=_device_of(random))
        unmoved = 1 if with_error else 0
        views += [one] * unmoved + [with_walls_moved(one, shift) for shift in shifts]
        own += [random] * unmoved + [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
        counts.append(num_maps + unmoved)
    return views, own, counts


def draw_shifts(count: int, jitter: float, generator: torch.Generator | None) -> list[list[float]]:
    """`count` ways of moving walls inside their pixels by up to `jitter`, `[x, y]`."""
    shifts = torch.rand(count, 2, generator=generator, device=_device_of(generator)) * 2 - 1
    return (shifts * jitter).tolist()


def with_walls_moved(scene: Scene, shift: list[float]) -> Scene:
    """The scene with the outlines that its mask suggests shifted; of one whose outlines are known, its cars."""
    if scene._cut_from is not None:
        whole, left, top = scene._cut_from
        height, width = scene.shape
        return with_walls_moved(whole, shift).crop(left, top, width, height)
    if scene.polygons is None:
        from radiodiff_diffusers.engines.outlines import known_outlines

        moved = tuple(tuple(ring + shift for ring in rings) for rings in known_outlines(scene))
        return scene.replace(polygons=moved, buildings=scene.footprint)
    offset = np.clip(np.add(scene.raster_offset, shift), -0.499, 0.499)
    return scene.replace(raster_offset=tuple(offset.tolist()))


def one_each(generator, count: int) -> list[torch.Generator | None]:
    """A generator for each scene. One for all is copied as it stands: every scene draws the same numbers."""
    if isinstance(generator, (list, tuple)):
        return [_as_generator(one) for one in generator]
    generator = _as_generator(generator)
    if generator is None:
        return [None] * count
    copies = [torch.Generator(generator.device) for _ in range(count - 1)]
    for copy in copies:
        copy.set_state(generator.get_state())
    return [generator, *copies][:count]


def _as_generator(given) -> torch.Generator | None:
    if given is None or isinstance(given, torch.Generator):
        return given
    if isinstance(given, Integral) and not isinstance(given, bool):  # a seed; numpy's integers, too
        return torch.Generator().manual_seed(int(given))
    raise ValueError(f"generator must be a torch.Generator, a seed, or a list of them; got {given!r}")


def _device_of(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def samples_by_error(
    scene: Scene | torch.Tensor, gain: torch.Tensor, error: torch.Tensor, num_maps: int, generator
) -> torch.Tensor:
    """Samples round a scene's map, the first of `gain`, by its expected error, see `samples_round`.

    Where walls were moved (the other maps), their effect is a second estimate of the error, and the geometric mean
    of both tells better where errors are.
    """
    error = error.mean(0) * HALF_OF_95_PERCENT
    if len(gain) > 1:
        by_walls = variance_of_walls(scene, gain[1:]).sqrt() + STANDING_STILL
        error = (error * WALLS_WEIGHT * by_walls).sqrt()
    return samples_round(gain[0], error, num_maps, generator)


def variance_of_walls(scene: Scene, maps: torch.Tensor) -> torch.Tensor:
    """How maps, `(n, 1, height, width)`, whose walls were moved differ from pixel to pixel, smoothed a little."""
    variance = maps.var(0).numpy()
    variance[:, scene.footprint] = 0  # what a network says in there must not leak out
    return torch.from_numpy(gaussian_filter(variance, (0, SMOOTHED, SMOOTHED)))


def samples_round(gain: torch.Tensor, deviation: torch.Tensor, num_maps: int, generator) -> torch.Tensor:
    """`(num_maps, 1, height, width)` in [-1, 1]: each sample lies as many deviations off as it draws, the same
    everywhere. Together they draw none, so that their mean is the map."""
    draws = torch.randn(num_maps, 1, 1, 1, generator=generator, device=_device_of(generator)).cpu()
    draws = (draws - draws.mean()) / draws.std()
    return (gain + draws * deviation).clamp(-1, 1)


def draw_noise(shape, generators, num_maps: int, device: torch.device) -> torch.Tensor:
    """`(scenes * num_maps, *shape)` of standard normal noise, each scene's from its own generator."""
    drawn = []
    for generator in generators:
        on = device if generator is None else generator.device
        drawn.append(torch.randn((num_maps, *shape), generator=generator, device=on).to(device))
    return torch.cat(drawn)

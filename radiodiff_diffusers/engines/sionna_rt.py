"""Ray tracing with Sionna RT: `radio_map = ray_tracing(scene)`, or `ray_tracing(scenes)` for scenes of one layout.

Needs `pip install sionna-rt` and, without an NVIDIA GPU, an LLVM library (Debian, Ubuntu: `apt-get install
libllvm19`).

How a map comes about. Buildings are extruded and given ITU-R P.2040 materials. The direct path is exact: Friis where
the pixel's centre sees the transmitter. Reflections (up to `max_depth`) and diffraction at building edges come from
Sionna's radio map solver, which shoots rays and collects them where they pass a plane. Both ends stand at the same
height here, and rays never cross a plane they run along: so the plane lies `CLIMB` metres higher, and roofs half of
that, to keep how far paths over them climb in all. Walls being upright, the ways on the map are the same, only a bit
longer (0.5 dB at 30 m). The ground is flat and its mirror image is added to every path by Fresnel's formula. Powers
add, phases do not. Sionna follows diffraction at one edge and no reflection after it: what needs more stays dark.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import clean_polygons, rasterize
from ..scene import RadioMap, Scene
from .free_space_gain import SPEED_OF_LIGHT, ground_reflectance
from .outlines import known_outlines, outlines

CLIMB = 10.0  # metres from the transmitter up to the plane on which rays are collected
OLDEST_LLVM = 17  # 15 and 16 end the process with "cannot select"
NEWEST_TRIED_LLVM = 19


def ray_tracing(
    scenes: Scene | Sequence[Scene],
    *,
    max_depth: int = 5,
    diffraction: bool = True,
    ground: bool = True,
    samples: int = 4_000_000,
    smooth: int = 1,
    seed: int = 0,
    walls: str = "concrete",
    soil: str = "medium_dry_ground",
) -> RadioMap | list[RadioMap]:
    """The sum of the powers of all paths to every pixel.

    Args:
        scenes (`Scene` or a list of them): several must share everything but the transmitter; their meshes are then
            made once. A map does not depend on the others it is computed with.
        max_depth (`int`, defaults to 5): interactions with walls a path may have.
        diffraction (`bool`, defaults to `True`): paths may also turn once at an edge.
        ground (`bool`, defaults to `True`): adds the paths' reflections at the ground.
        samples (`int`, defaults to 4,000,000): rays a transmitter; more take longer and are less noisy.
        smooth (`int`, defaults to 1): what is not direct is averaged over the pixels that many steps around.
        seed (`int`, defaults to 0): decides the random part of the rays. The work is done by one thread: with several,
            Dr.Jit adds powers in an order that changes from run to run (as it does on a GPU, in the last digit).
        walls, soil (`str`): Sionna's names of ITU materials.

    Returns:
        A `RadioMap`, or a list of them for a list. Buildings, and what no path reaches, are at the scale's floor.
    """
    several = list(scenes) if not isinstance(scenes, Scene) else [scenes]
    if not several:
        return []
    _check(several, max_depth, samples, smooth, seed)
    rt = _load_sionna()
    first = several[0]
    world, material = _build(rt, first, walls, soil)
    free_share = _free_share(first)
    material = material if ground else None
    with _one_thread():
        maps = [
            _solve(rt, world, material, scene, free_share, max_depth, diffraction, samples, smooth, seed)
            for scene in several
        ]
    return maps[0] if isinstance(scenes, Scene) else maps


def _check(scenes: list[Scene], max_depth: int, samples: int, smooth: int, seed: int) -> None:
    first = scenes[0]
    for scene in scenes:
        scene.require_transmitter("ray_tracing")
        same = (
            scene.shape == first.shape
            and np.array_equal(scene.buildings, first.buildings)
            and (scene.cars is None) == (first.cars is None)
            and (scene.cars is None or np.array_equal(scene.cars, first.cars))
            and all(
                getattr(scene, name) == getattr(first, name)
                for name in (
                    "metres_per_pixel",
                    "frequency_hz",
                    "building_height",
                    "transmitter_height",
                    "receiver_height",
                )
            )
        )
        if not same:
            raise ValueError(
                "ray_tracing takes several scenes that differ in their transmitters only: call it once a layout"
            )
        if scene.antenna_pattern is not None:
            raise ValueError("ray_tracing knows isotropic antennas only: leave antenna_pattern out")
    if first.building_height <= max(first.transmitter_height, first.receiver_height):
        raise ValueError(
            f"ray_tracing needs both ends below the roofs; got heights {first.transmitter_height:g} and "
            f"{first.receiver_height:g} m under roofs of {first.building_height:g} m"
        )
    for name, value, least in (
        ("max_depth", max_depth, 0),
        ("samples", samples, 1),
        ("smooth", smooth, 0),
        ("seed", seed, 0),
    ):
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} must be a whole number from {least} up; got {value!r}")


# Sionna RT and what it needs -----------------------------------------------------------------------------------------


def missing_for_ray_tracing() -> str | None:
    """What has to be installed before `ray_tracing` can run, in one line, or `None` where nothing is missing."""
    from importlib.util import find_spec

    if find_spec("sionna") is None or find_spec("drjit") is None:
        return "ray_tracing needs Sionna RT: pip install sionna-rt"
    if _has_cuda() or find_llvm() is not None:
        return None
    return (
        f"ray_tracing needs an LLVM library of version {OLDEST_LLVM} or later: apt-get install libllvm19 (Debian, "
        "Ubuntu), brew install llvm (macOS), or set DRJIT_LIBLLVM_PATH to a libLLVM"
    )


def find_llvm() -> Path | None:
    """The LLVM library that Dr.Jit should use: `DRJIT_LIBLLVM_PATH`, or the best-tried one in the usual places."""
    named = os.environ.get("DRJIT_LIBLLVM_PATH")
    if named:
        return Path(named) if Path(named).exists() else None
    found: dict[int, Path] = {}
    for pattern in (
        "/usr/lib/*/libLLVM*.so*",
        "/usr/lib/llvm-*/lib/libLLVM*.so*",
        "/usr/lib64/libLLVM*.so*",
        "/usr/lib64/llvm*/lib/libLLVM*.so*",
        "/usr/local/lib/libLLVM*.so*",
        "/opt/homebrew/opt/llvm*/lib/libLLVM*.dylib",
        "/usr/local/opt/llvm*/lib/libLLVM*.dylib",
    ):
        for path in sorted(Path("/").glob(pattern[1:])):
            version = re.search(r"libLLVM(?:-|\.so\.|\.)(\d+)", path.resolve().name) or re.search(
                r"llvm@?-?(\d+)", str(path)
            )
            if version and int(version[1]) >= OLDEST_LLVM:
                found.setdefault(int(version[1]), path)
    return found[min(found, key=lambda version: abs(version - NEWEST_TRIED_LLVM))] if found else None


def _has_cuda() -> bool:
    from ctypes.util import find_library

    return find_library("cuda") is not None


@contextmanager
def _one_thread() -> Iterator[None]:
    import drjit

    before = drjit.thread_count()
    drjit.set_thread_count(1)
    try:
        yield
    finally:
        drjit.set_thread_count(before)


def _load_sionna() -> Any:
    missing = missing_for_ray_tracing()
    if missing:
        raise ImportError(missing)
    llvm = find_llvm()
    if llvm is not None:
        os.environ.setdefault(
            "DRJIT_LIBLLVM_PATH", str(llvm)
        )  # Dr.Jit reads it when it starts, and may find an old one
    import sionna.rt

    return sionna.rt


# From outlines to meshes ---------------------------------------------------------------------------------------------


def _build(rt: Any, scene: Scene, walls: str, soil: str) -> tuple[Any, Any]:
    """Sionna's scene of a layout, in metres, x east, y north; and the ground's material."""
    import mitsuba as mi

    world = rt.load_scene()
    world.frequency = scene.frequency_hz
    try:
        objects = []
        polygons = known_outlines(scene)
        parts = [("buildings", polygons, scene.building_height + CLIMB / 2, walls)]
        if scene.cars is not None:  # as high as the antennas; they must reach the rays' plane to stand in the way
            parts.append(
                ("cars", outlines(scene.cars, scene.raster_offset), scene.transmitter_height + CLIMB + 0.1, "metal")
            )
        for name, shapes, height, material in parts:
            vertices, faces = extrude(shapes, height, scene.metres_per_pixel)
            if not len(faces):
                continue
            mesh = mi.Mesh(name, len(vertices), len(faces))
            contents = mi.traverse(mesh)
            contents["vertex_positions"] = vertices.astype(np.float32).ravel()
            contents["faces"] = faces.astype(np.uint32).ravel()
            contents.update()
            made_of = rt.ITURadioMaterial(f"{name} {material}", material, thickness=0.3)
            objects.append(rt.SceneObject(mi_mesh=mesh, name=name, radio_material=made_of))
        ground = rt.ITURadioMaterial("ground", soil, thickness=1.0)
        world.add(ground)  # which sets its constants for the frequency
        if objects:
            world.edit(add=objects)
    except ValueError as error:  # a material that is unknown, or not at this frequency
        raise ValueError(f"ray_tracing: {error}") from None
    world.tx_array = rt.PlanarArray(num_rows=1, num_cols=1, pattern="iso", polarization="V")
    world.rx_array = world.tx_array
    return world, ground


def extrude(polygons: Any, height: float, metres_per_pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Walls and flat roofs over outlines: vertices (n, 3) in metres and triangles (m, 3) of their numbers.

    Walls and roof share their vertices, which is how Sionna RT knows an edge that diffracts.
    """
    import shapely

    vertices, faces, used = [np.empty((0, 3))], [np.empty((0, 3), int)], 0
    for rings in clean_polygons(polygons):
        numbers = {}
        for ring in rings:
            n = len(ring)
            places = np.asarray(ring) * (metres_per_pixel, -metres_per_pixel)
            vertices += [np.column_stack([places, np.zeros(n)]), np.column_stack([places, np.full(n, height)])]
            low = used + np.arange(n)
            after = np.roll(low, -1)
            faces += [np.column_stack([low, after, after + n]), np.column_stack([low, after + n, low + n])]
            numbers.update({tuple(point): used + n + k for k, point in enumerate(np.asarray(ring).tolist())})
            used += 2 * n
        roof = shapely.constrained_delaunay_triangles(shapely.Polygon(rings[0], rings[1:]))
        corners = shapely.get_coordinates(roof).reshape(-1, 4, 2)[:, :3]
        faces.append(
            np.array([[numbers[tuple(point)] for point in triangle] for triangle in corners.tolist()], int).reshape(
                -1, 3
            )
        )
    return np.concatenate(vertices), np.concatenate(faces)


def _free_share(scene: Scene) -> np.ndarray:
    """How much of each pixel is outside buildings, 0 .. 1: rays arrive only there."""
    if scene.polygons is None:
        return (~scene.buildings).astype(np.float64)
    steps = (np.arange(4) - 1.5) / 4
    inside = sum(rasterize(scene.polygons, scene.shape, (dx, dy)).astype(float) for dx in steps for dy in steps)
    return 1 - inside / 16


# Solving -------------------------------------------------------------------------------------------------------------


def _solve(rt, world, ground, scene, free_share, max_depth, diffraction, samples, smooth, seed) -> RadioMap:
    import mitsuba as mi

    metres = scene.metres_per_pixel
    height, width = scene.shape
    place = _outside(scene)
    east, north = place[0] * metres, -place[1] * metres
    # Rays are drawn anew for every transmitter, by its place, not by its turn.
    own_seed = np.random.SeedSequence([seed, *np.float64(place).view(np.uint32).tolist()]).generate_state(1)[0]
    world.add(rt.Transmitter("transmitter", position=[east, north, scene.transmitter_height]))
    try:
        collected = rt.RadioMapSolver()(
            world,
            center=mi.Point3f((width - 1) / 2 * metres, -(height - 1) / 2 * metres, scene.transmitter_height + CLIMB),
            orientation=mi.Point3f(0, 0, 0),
            size=mi.Point2f(width * metres, height * metres),
            cell_size=mi.Point2f(metres, metres),
            samples_per_tx=int(samples),
            max_depth=int(max_depth),
            los=False,
            refraction=False,
            diffraction=bool(diffraction),
            seed=int(own_seed) >> 1,
        )
        indirect = np.array(collected.path_gain, np.float64)[0][::-1]
    finally:
        world.remove("transmitter")
    if smooth:
        from scipy.ndimage import uniform_filter

        side = 2 * smooth + 1
        indirect, free_share = (uniform_filter(plane, side, mode="constant") for plane in (indirect, free_share))
    indirect = np.where(free_share > 0, indirect / np.maximum(free_share, 1e-3), 0)

    rows, columns = np.indices(scene.shape)
    away = np.hypot(columns - place[0], rows - place[1]) * metres
    rise = scene.receiver_height - scene.transmitter_height
    wavelength = SPEED_OF_LIGHT / scene.frequency_hz
    friis = (wavelength / (4 * np.pi * np.maximum(np.hypot(away, rise), 1.0))) ** 2
    power = indirect + friis * _sees(world, scene, (east, north))
    if ground is not None:
        power *= 1 + ground_reflectance(scene, _permittivity(ground, scene), away)

    scale = RadioMap.__dataclass_fields__["scale"].default
    gain = np.full(scene.shape, scale.floor_db)
    reached = (power > 10 ** (scale.floor_db / 10)) & ~scene.footprint
    gain[reached] = 10 * np.log10(power[reached])
    return RadioMap(np.round(gain, 3), scale, metres)


def _outside(scene: Scene) -> tuple[float, float]:
    """The transmitter, or the nearest place outside where it was drawn into a wall."""
    import shapely

    x, y = scene.transmitter
    if scene.polygons is None:
        return x, y
    whole = shapely.union_all([shapely.Polygon(rings[0], rings[1:]) for rings in clean_polygons(scene.polygons)])
    point = shapely.Point(x, y)
    if not whole.covers(point):
        return x, y
    way_out = shapely.shortest_line(point, shapely.boundary(whole.buffer(0.1, join_style="mitre")))
    return tuple(float(v) for v in way_out.coords[-1])


def _sees(world: Any, scene: Scene, place: tuple[float, float]) -> np.ndarray:
    """1 where the straight way from the transmitter to the pixel's centre is free, else 0."""
    import mitsuba as mi

    height, width = scene.shape
    metres = scene.metres_per_pixel
    rows, columns = np.indices(scene.shape)
    way = np.stack([columns * metres - place[0], -rows * metres - place[1]]).reshape(2, -1)
    rise = np.full(height * width, scene.receiver_height - scene.transmitter_height)
    length = np.sqrt((way**2).sum(0) + rise**2)
    at_transmitter = length < 1e-3
    length[at_transmitter] = 1.0
    direction = np.stack([*way, rise]) / length
    rays = mi.Ray3f(
        o=mi.Point3f(float(place[0]), float(place[1]), scene.transmitter_height),
        d=mi.Vector3f(*(mi.Float(np.ascontiguousarray(part, np.float32)) for part in direction)),
        maxt=mi.Float(np.ascontiguousarray(length - 1e-3, np.float32)),
        time=0.0,
        wavelengths=mi.Color0f(),
    )
    free = ~np.array(world.mi_scene.ray_test(rays), bool) | at_transmitter
    return free.reshape(scene.shape).astype(np.float64)


def _permittivity(material: Any, scene: Scene) -> complex:
    permittivity = float(np.array(material.relative_permittivity).ravel()[0])
    conductivity = float(np.array(material.conductivity).ravel()[0])
    return permittivity - 1j * conductivity / (2 * np.pi * scene.frequency_hz * 8.8541878128e-12)

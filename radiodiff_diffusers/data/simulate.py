"""Training data in quantity: `simulate("maps", cities=100, transmitters=80)` writes a folder in RadioMapSeer's layout.

    maps/manifest.json                          every parameter, and which city each map number is
    maps/polygon/buildings_complete/0.json      outlines: closed rings of [x, y], y up
    maps/png/buildings_complete/0.png           the building mask
    maps/antenna/0.json                         the transmitters: pixel column = x, row = height - 1 - y
    maps/png/antennas/0_3.png                   one bright pixel
    maps/gain/DPM/0_3.png                       the radio map (gain/RT by ray tracing, gain/FS in free space)
    maps/png/cars/0.png, maps/polygon/buildings_and_cars/0.json, maps/gain/carsDPM/0_3.png     with cars

Several processes share the work, and what they write does not depend on how many they are. Every file appears whole or
not at all; a run that was stopped goes on where it was when it is started again with the same parameters. In a script,
call `simulate` under `if __name__ == "__main__":`, as for every use of Python's process pools.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..geometry import RADIOMAPSEER_MASK_OFFSET, rasterize
from ..scene import RASTERS, RadioMap, Scene
from .cities import TRANSMITTER_AREA, generate_city, park_cars, transmitters
from .city_blocks import STYLES
from .footprints import CITIES, cut_tiles, footprint_tiles
from .radiomapseer_writer import holds_anything, rings_of, write_image, write_whole

logger = logging.getLogger(__name__)

# engine -> folder under gain/
ENGINES = {"dominant_path": "DPM", "reflected_rays": "RR", "ray_tracing": "RT", "free_space": "FS"}
MADE_UP = "made-up"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Simulation:
    """What `simulate` makes; everything that decides a byte of it, and nothing else.

    Args:
        cities (`int`, *optional*): how many maps. Where left out: 10 made-up cities, or all tiles of the sources.
        transmitters (`int`, defaults to 80): radio maps a city.
        engine (`str`, defaults to `"dominant_path"`): one of `ENGINES`.
        engine_options (`dict`): passed to the engine.
        sources (`tuple[str]`): where layouts come from: `"made-up"`, a real town (`footprints.CITIES`), or a file with
            outlines or a mask. Several are taken in turn.
        style (`str`, *optional*): of made-up cities; one of `city_blocks.STYLES`.
        stride (`int`, *optional*): pixels from one tile of a real town to the next; half a tile where left out.
        size (`int`, defaults to 256): side of each map in pixels.
        metres_per_pixel (`float`, defaults to 1.0), frequency_hz (`float`, defaults to 5.9e9): of each map.
        area (`float`, defaults to 150): metres; transmitters stand in a square of this side in the middle.
        cars (`int`, defaults to 0): parked cars a city. With cars there are two sets of maps: without and with them.
        raster (`str`, defaults to `"radiomapseer"`): the building mask is drawn half a pixel off the gain maps, as in
            RadioMapSeer, or `"exact"`ly on them.
        seed (`int`, defaults to 0): another seed, other cities and transmitters.
    """

    cities: int | None = None
    transmitters: int = 80
    engine: str = "dominant_path"
    engine_options: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = (MADE_UP,)
    style: str | None = None
    stride: int | None = None
    size: int = 256
    metres_per_pixel: float = 1.0
    frequency_hz: float = 5.9e9
    area: float = TRANSMITTER_AREA
    cars: int = 0
    raster: str = "radiomapseer"
    seed: int = 0

    def __post_init__(self) -> None:
        def refuse(name: str, expected: str) -> None:
            raise ValueError(f"{name} must be {expected}; got {getattr(self, name)!r}")

        for name in ("transmitters", "size"):
            if not _is_whole(getattr(self, name)) or getattr(self, name) < (8 if name == "size" else 1):
                refuse(name, "a whole number from 8 up" if name == "size" else "a whole number from 1 up")
        for name in ("cars", "seed"):
            if not _is_whole(getattr(self, name)) or getattr(self, name) < 0:
                refuse(name, "a whole number from 0 up")
        for name in ("cities", "stride"):
            value = getattr(self, name)
            if value is not None and (not _is_whole(value) or value < 1):
                refuse(name, "a whole number from 1 up")
        for name in ("metres_per_pixel", "frequency_hz", "area"):
            if not (np.isreal(getattr(self, name)) and 0 < getattr(self, name) < float("inf")):
                refuse(name, "a number above 0")
        if self.engine not in ENGINES:
            refuse("engine", f"one of {', '.join(ENGINES)}")
        if self.raster not in RASTERS:
            refuse("raster", f"one of {', '.join(RASTERS)}")
        if self.style is not None and self.style not in STYLES:
            refuse("style", f"one of {', '.join(STYLES)}")
        if not self.sources:
            refuse("sources", f"one or more of {MADE_UP}, {', '.join(CITIES)} or files")
        for source in self.sources:
            if source != MADE_UP and source not in CITIES and not Path(source).is_file():
                raise ValueError(f"source {source!r} is neither {MADE_UP}, nor one of {', '.join(CITIES)}, nor a file")


def simulate(
    folder: str | Path, *, workers: int | None = None, progress: bool = True, **parameters: Any
) -> dict[str, Any]:
    """Write many radio maps of many cities; see `Simulation` for the parameters.

    Args:
        folder (`str` or `Path`): new, empty, or one in which the same simulation was stopped.
        workers (`int`, *optional*): processes; one a core where left out. 1 works in this process.
        progress (`bool`, defaults to `True`): shows a bar with rate and time left.

    Returns:
        `{"cities", "maps", "made", "seconds"}`: what the folder now holds, and of how many transmitters this call
        made maps or dots. Files of a finished simulation that were lost come back with the same bytes.
    """
    if "sources" in parameters:
        parameters["sources"] = tuple(str(source) for source in parameters["sources"])
    unknown = sorted(set(parameters) - {f.name for f in dataclasses.fields(Simulation)})
    if unknown:
        raise ValueError(f"simulate has no parameter {unknown[0]!r}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be a whole number from 1 up; got {workers}")
    simulation = Simulation(**parameters)
    constants = _engine_constants(simulation)
    layouts = _layouts(simulation)
    folder, started = Path(folder), time.monotonic()
    try:
        with _claimed(folder):
            _write_manifest(folder, simulation, constants, layouts, finished=False)
            jobs = _unfinished(folder, simulation, len(layouts))
            made = sum(len(job.transmitters) for job in jobs)
            workers = max(1, min(workers or _cores(), -(-made // 4)))
            jobs = _split(jobs, workers)
            with _bar(simulation, len(layouts), made, progress) as bar:
                if workers == 1:
                    for job in jobs:
                        _work(folder, simulation, layouts[job.map_id], job, bar.update)
                else:
                    _share_out(folder, simulation, layouts, jobs, workers, bar.update)
            _write_manifest(folder, simulation, constants, layouts, finished=True)
    except OSError as error:
        raise ValueError(_what_failed(error, folder)) from error
    maps = len(layouts) * simulation.transmitters
    return {"cities": len(layouts), "maps": maps, "made": made, "seconds": time.monotonic() - started}


def _engine_constants(simulation: Simulation) -> dict[str, Any]:
    """All constants of the engine, given or not. One line where it cannot run, or does not have such options."""
    import inspect

    from .. import engines

    options = simulation.engine_options
    try:
        if simulation.engine == "dominant_path":
            from ..engines.dominant_paths import PathLaws

            return dataclasses.asdict(PathLaws(**options))
        if simulation.engine == "ray_tracing":
            from ..engines.sionna_rt import missing_for_ray_tracing

            missing = missing_for_ray_tracing()
            if missing:
                raise ValueError(missing)
        call = inspect.signature(getattr(engines, simulation.engine)).bind(None, **options)
        call.apply_defaults()
        return {name: value for name, value in list(call.arguments.items())[1:] if name != "city"}
    except TypeError as error:
        raise ValueError(f"the engine {simulation.engine} does not take these options: {error}") from None


# What there is to do -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where one map's city comes from; small, so that it travels to other processes in place of the city itself."""

    source: str
    number: int  # seed of a made-up city, tile of a town or a file
    name: str


@dataclass(frozen=True)
class Job:
    """A city that lacks files, and its transmitters that lack a map or a dot."""

    map_id: int
    transmitters: tuple[int, ...]


def _layouts(simulation: Simulation) -> list[Layout]:
    """What map 0, 1, ... are. A longer list starts as a shorter one does: a simulation can go on with more cities."""
    found: dict[str, list[Layout]] = {}
    for source in simulation.sources:
        if source != MADE_UP:
            tiles = _tiles(source, simulation.size, simulation.stride, simulation.metres_per_pixel)
            order = np.random.default_rng([simulation.seed, 3]).permutation(len(tiles))
            found[source] = [Layout(source, int(k), tiles[k].name) for k in order]
    if MADE_UP in simulation.sources:
        wanted = simulation.cities or max([10, *(len(layouts) for layouts in found.values())])
        seeds = [int(np.random.SeedSequence((simulation.seed, k)).generate_state(1)[0]) for k in range(wanted)]
        found[MADE_UP] = [Layout(MADE_UP, seed, f"{MADE_UP}-{seed}") for seed in seeds]
    turns = max(len(layouts) for layouts in found.values())
    in_turn = [layouts[k] for k in range(turns) for layouts in found.values() if k < len(layouts)]
    if simulation.cities is None:
        return in_turn
    if len(in_turn) < simulation.cities:
        raise ValueError(
            f"{', '.join(simulation.sources)} give {len(in_turn)} cities of {simulation.size} pixels, not "
            f"{simulation.cities}: ask for fewer, for a smaller stride, or add the source {MADE_UP}"
        )
    return in_turn[: simulation.cities]


@lru_cache(maxsize=2)
def _tiles(source: str, size: int, stride: int | None, metres_per_pixel: float) -> list[Scene]:
    """The maps that a real town or a file gives: tiles, or one where a file holds no more."""
    if source in CITIES:
        return footprint_tiles(source, size, stride, metres_per_pixel)
    import shapely

    from .layout_files import is_town, scene_from_file, town_from_file

    if is_town(source):
        town = town_from_file(source)
        west, south, east, north = shapely.total_bounds(town)
        if max(east - west, north - south) > size * metres_per_pixel:
            return cut_tiles(town, Path(source).stem, size, stride, metres_per_pixel)
    return [scene_from_file(source, size=size, metres_per_pixel=metres_per_pixel)]


def _unfinished(folder: Path, simulation: Simulation, cities: int) -> list[Job]:
    """The cities of which any file is missing, each with its transmitters of which one is."""
    present = {name: _names_in(folder / name) for name in (*_city_folders(simulation), *_map_folders(simulation))}
    jobs = []
    for map_id in range(cities):
        missing = tuple(
            t
            for t in range(simulation.transmitters)
            if any(f"{map_id}_{t}.png" not in present[name] for name in _map_folders(simulation))
        )
        if missing or any(f"{map_id}{suffix}" not in present[k] for k, suffix in _city_folders(simulation).items()):
            jobs.append(Job(map_id, missing))
    return jobs


def _names_in(folder: Path) -> set[str]:
    """The files of a folder, but for empty ones, which a machine that lost power may leave."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file() and entry.stat().st_size}


def _split(jobs: list[Job], workers: int) -> list[Job]:
    """Few cities are cut into parts so that no worker is left without; each part prepares the geometry anew."""
    parts = 1 if workers == 1 else -(-4 * workers // max(len(jobs), 1))
    return [
        Job(job.map_id, tuple(int(t) for t in part))
        for job in jobs
        for part in np.array_split(np.array(job.transmitters, int), max(1, min(parts, len(job.transmitters) // 4)))
    ]


# Doing it -----------------------------------------------------------------------------------------------------------


def _work(folder: Path, simulation: Simulation, layout: Layout, job: Job, done: Callable[[int], Any]) -> None:
    """One city's files, then the dots and maps of the job's transmitters that are not there."""
    city, places, cars = _city(simulation, layout, job.map_id)
    _write_city(folder, simulation, job.map_id, city, places, cars)
    gains = _gain_folders(simulation)
    lacking = {
        gain: [t for t in job.transmitters if not holds_anything(folder / gain / f"{job.map_id}_{t}.png")]
        for gain in gains
    }
    last = {t: gain for gain, numbers in lacking.items() for t in numbers}  # with it a transmitter is done
    for t in job.transmitters:
        dot = np.zeros(city.shape, np.uint8)
        dot[places[t][1], places[t][0]] = 255
        write_image(folder / "png" / "antennas" / f"{job.map_id}_{t}.png", dot)
    done(len(job.transmitters) - len(last))
    for gain, cars_shown in gains.items():
        scene = city.replace(cars=cars[0]) if cars_shown else city
        scenes = [scene.replace(transmitter=places[t]) for t in lacking[gain]]
        for t, radio_map in zip(lacking[gain], _run_engine(simulation, scenes), strict=True):
            write_image(folder / gain / f"{job.map_id}_{t}.png", np.rint(radio_map.gray).astype(np.uint8))
            done(1 if last[t] == gain else 0)


def _city(simulation: Simulation, layout: Layout, map_id: int) -> tuple[Scene, list[tuple[int, int]], tuple | None]:
    """A city, its transmitters and its cars (mask and outlines), decided by the seed and the map's number alone."""
    if layout.source == MADE_UP:
        city = generate_city(layout.number, simulation.size, simulation.metres_per_pixel, simulation.style)
    else:
        city = _tiles(layout.source, simulation.size, simulation.stride, simulation.metres_per_pixel)[layout.number]
    if city.polygons is None:
        from ..engines.outlines import outlines

        city = city.replace(polygons=outlines(city.buildings))
    city = city.replace(frequency_hz=simulation.frequency_hz)
    cars, blocked = None, city
    if simulation.cars:
        parked = park_cars(city, simulation.cars, np.random.default_rng([simulation.seed, map_id, 1]))
        cars = (rasterize(parked, city.shape), parked)
        blocked = city.replace(cars=cars[0])
    rng = np.random.default_rng([simulation.seed, map_id, 2])
    return city, transmitters(blocked, simulation.transmitters, rng, simulation.area), cars


def _run_engine(simulation: Simulation, scenes: list[Scene]) -> Iterator[RadioMap]:
    """The radio maps of one layout's scenes, one after the other, with what they share prepared once."""
    from .. import engines

    if not scenes:
        return
    options = simulation.engine_options
    if simulation.engine in ("dominant_path", "reflected_rays"):
        engine, city = getattr(engines, simulation.engine), engines.prepare(scenes[0])
        for scene in scenes:
            yield engine(scene, city=city, **options)
    elif simulation.engine == "ray_tracing":
        for start in range(0, len(scenes), 4):
            yield from engines.ray_tracing(scenes[start : start + 4], **{"seed": simulation.seed, **options})
    else:
        for scene in scenes:
            yield engines.free_space(scene, **options)


def _share_out(folder, simulation, layouts, jobs, workers, done) -> None:
    """The jobs in several processes. Each counts its maps in a place of its own, so that no lock can outlive it."""
    import multiprocessing
    from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    counts = context.RawArray("q", len(jobs))
    pool = ProcessPoolExecutor(workers, context, _start_worker, (folder, simulation, layouts, counts))
    try:
        pending = {pool.submit(_work_elsewhere, number, job) for number, job in enumerate(jobs)}
        shown = 0
        while pending:
            finished, pending = wait(pending, timeout=0.3, return_when=FIRST_EXCEPTION)
            total = sum(counts)
            done(total - shown)
            shown = total
            for future in finished:
                future.result()
    except BrokenProcessPool:
        raise ValueError(
            "a simulation process was stopped from outside, most often for want of memory: run the same command again "
            "(it goes on where it stopped), with fewer workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(*shared: Any) -> None:
    import multiprocessing
    from multiprocessing.connection import wait

    _SHARED[:] = shared

    def leave_with_parent() -> None:  # killed outright, it cannot tell its workers to stop
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


_SHARED: list[Any] = []


def _work_elsewhere(number: int, job: Job) -> None:
    folder, simulation, layouts, counts = _SHARED

    def done(n: int) -> None:
        counts[number] += n

    _work(folder, simulation, layouts[job.map_id], job, done)


# Writing it ---------------------------------------------------------------------------------------------------------


def _gain_folders(simulation: Simulation) -> dict[str, bool]:
    """Folder -> whether its maps show the cars."""
    name = ENGINES[simulation.engine]
    return {f"gain/{name}": False, f"gain/cars{name}": True} if simulation.cars else {f"gain/{name}": False}


def _map_folders(simulation: Simulation) -> list[str]:
    """Where each transmitter has a file."""
    return [*_gain_folders(simulation), "png/antennas"]


def _city_folders(simulation: Simulation) -> dict[str, str]:
    """Where each city has a file, with its ending."""
    folders = {"png/buildings_complete": ".png", "polygon/buildings_complete": ".json", "antenna": ".json"}
    if simulation.cars:
        folders |= {"png/cars": ".png", "polygon/buildings_and_cars": ".json"}
    return folders


def _write_city(folder: Path, simulation: Simulation, map_id: int, city: Scene, places, cars) -> None:
    height = city.shape[0]
    exact = simulation.raster == "exact"
    mask = city.buildings if exact else rasterize(city.polygons, city.shape, RADIOMAPSEER_MASK_OFFSET)
    if cars:
        shown = cars[0] if exact else rasterize(cars[1], city.shape, RADIOMAPSEER_MASK_OFFSET)
        write_image(folder / "png" / "cars" / f"{map_id}.png", shown.astype(np.uint8) * 255)
        together = [*rings_of(city.polygons, height), *rings_of(cars[1], height)]
        write_whole(folder / "polygon" / "buildings_and_cars" / f"{map_id}.json", json.dumps(together).encode())
    write_image(folder / "png" / "buildings_complete" / f"{map_id}.png", mask.astype(np.uint8) * 255)
    rings = json.dumps(rings_of(city.polygons, height)).encode()
    write_whole(folder / "polygon" / "buildings_complete" / f"{map_id}.json", rings)
    antennas = [[x, height - 1 - y] for x, y in places]
    write_whole(folder / "antenna" / f"{map_id}.json", json.dumps(antennas).encode())


def _write_manifest(
    folder: Path, simulation: Simulation, constants: dict[str, Any], layouts: list[Layout], finished: bool
) -> None:
    """The parameters; or a line, where the folder already holds maps made with others. More cities may be added."""
    parameters = json.loads(json.dumps(dataclasses.asdict(simulation)))
    names = [layout.name for layout in layouts]
    path = folder / MANIFEST
    if path.is_file():
        try:
            before = json.loads(path.read_bytes())
            earlier, there = before["parameters"], before["maps"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is damaged: choose another folder") from None
        for name, value in parameters.items():
            if name != "cities" and earlier.get(name) != value:
                raise ValueError(
                    f"{folder} holds a simulation with {name} {earlier.get(name)!r}, not {value!r}: choose another "
                    "folder, or ask for what is there to go on with it"
                )
        if before.get("engine_constants", constants) != constants:
            raise ValueError(
                f"{folder} was made by another version of the engine {simulation.engine}, with other constants: "
                "choose another folder"
            )
        if there != names[: len(there)]:
            raise ValueError(
                f"{folder} holds {len(there)} cities that this simulation would not make: choose another folder"
            )
    elif any(entry.name != ".lock" for entry in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no {MANIFEST}: choose another folder")
    manifest = {
        "what": "radio maps in RadioMapSeer's layout, made by radiodiff simulate",
        "version": __version__,
        "parameters": parameters,
        "engine_constants": constants,
        "gain_db_at_gray": {"0": RadioMap.from_gray(np.zeros((1, 1))).gain_db.item(), "255": -47.84},
        "maps": names,
        "finished": finished,
    }
    write_whole(path, (json.dumps(manifest, indent=1) + "\n").encode())


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """A lock on the folder that ends with this process, however it ends; clears half-written files."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows: two runs in one folder only waste work
            pass
        except BlockingIOError:
            raise ValueError(f"another simulation is writing to {folder}: wait, or choose another folder") from None
        for leftover in folder.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        yield


def _what_failed(error: OSError, folder: Path) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"no space left for {folder}: free some and run the same command again; it goes on where it stopped"
    return f"cannot write to {folder}: {error.strerror or error} ({error.filename or folder})"


def _bar(simulation: Simulation, cities: int, todo: int, progress: bool):
    from tqdm.auto import tqdm

    total = cities * simulation.transmitters
    return tqdm(total=total, initial=total - todo, unit="map", disable=not progress, smoothing=0.05, desc="simulate")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)

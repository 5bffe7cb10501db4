"""What a map of the default model takes beside the dominant-path engine: alone, and many at once.

    python benchmarks/bench_map.py --radiomapseer FOLDER      # or a made-up city's mask, without it

Everything is timed in turn, best of some rounds, channels and outlines included; the last lines are medians of the
rounds' own ratios, which a busy machine moves less. A search runs on one thread; the pipeline prepares the city of a
list of scenes once and searches on several threads, and in the last rows of the engine it does the same.
"""

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from radiodiff_diffusers import DEFAULT_MODEL, RadioDiffPipeline, Scene
from radiodiff_diffusers.data.cities import generate_city, transmitters
from radiodiff_diffusers.engines import dominant_path, prepare


def scenes_of_a_city(folder: Path | None, count: int) -> list[Scene]:
    if folder is not None:
        return [Scene.from_radiomapseer(folder, 0, number) for number in range(count)]
    city = generate_city(7, style="apartments").replace(polygons=None)
    places = transmitters(city, count, np.random.default_rng(0))
    return [city.replace(transmitter=place) for place in places]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--radiomapseer", type=Path)
    parser.add_argument("--count", type=int, default=8, help="maps at once")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scenes = scenes_of_a_city(args.radiomapseer, args.count)
    fresh = lambda: [scene.replace() for scene in scenes]  # noqa: E731  (a scene remembers its channels)
    pipe = RadioDiffPipeline.from_pretrained(DEFAULT_MODEL)
    pipe.set_progress_bar_config(disable=True)

    def anew():
        pipe._kept_walls.clear()  # the pipeline remembers its last cities
        return pipe

    pool = ThreadPoolExecutor(min(args.count, 8))

    def with_one_city(scenes, map):
        city = prepare(scenes[0])
        return list(map(lambda scene: dominant_path(scene, city=city), scenes))

    at_once = f"{args.count} at once"
    work = {
        "engine, one map": (lambda: dominant_path(fresh()[0]), 1),
        "engine, a loop": (lambda: [dominant_path(scene) for scene in fresh()], args.count),
        "engine, a loop, the city prepared once": (lambda: with_one_city(fresh(), map), args.count),
        f"engine, {at_once}, the city prepared once": (lambda: with_one_city(fresh(), pool.map), args.count),
        "engine, step 2, one map": (lambda: dominant_path(fresh()[0], step=2), 1),
        "default model, one map": (lambda: anew()(fresh()[0]), 1),
        "default model, a loop": (lambda: list(map(anew(), fresh())), args.count),
        f"default model, {at_once}": (lambda: anew()(fresh()), args.count),
        "default model, one map and how sure it is": (lambda: anew()(fresh()[0], num_maps=8), 1),
    }
    seconds = {name: [] for name in work}
    for run, _ in work.values():
        run()
    for _ in range(args.rounds):
        for name, (run, _) in work.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    print(f"| {args.threads} threads | ms a map |\n|---|---|")
    for name, (_, maps) in work.items():
        print(f"| {name} | {1e3 * min(seconds[name]) / maps:.0f} |")
    for what, engine in (
        ("one map", "one map"),
        ("a loop", "a loop, the city prepared once"),
        (at_once, f"{at_once}, the city prepared once"),
    ):
        ratios = np.divide(seconds[f"default model, {what}"], seconds[f"engine, {engine}"])
        print(f"default model, {what}: {np.median(ratios):.2f} of the engine's time ({engine})")


if __name__ == "__main__":
    main()

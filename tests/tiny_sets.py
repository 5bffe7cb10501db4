"""Tiny data sets in the layouts of the real ones, made anew for each test."""

import json

import numpy as np
from PIL import Image

from radiodiff_diffusers.geometry import RADIOMAPSEER_MASK_OFFSET, rasterize

SIDE = 64
SIMULATIONS = ("DPM", "IRT2", "carsDPM", "carsIRT2")


def save(path, plane):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(plane).save(path)


def outlines(map_id):
    """Three buildings in metres, y up, closed rings; the second runs clockwise, the third moves with the map."""
    k = map_id % 5
    return [
        [[5, 5], [20, 5], [20, 20], [5, 20], [5, 5]],
        [[30, 30], [30, 45], [50, 45], [50, 30], [30, 30]],
        [[40 + k, 5], [55, 5], [50, 18 + k], [40 + k, 5]],
    ]


def cars(map_id):
    return [[[24, 24], [28, 24], [28, 26], [24, 26], [24, 24]]]


def to_pixels(rings, height=SIDE):
    return [np.array(ring) * (1, -1) + (-1, height) for ring in rings]


def transmitters(map_id, count):
    rng = np.random.default_rng([map_id, 7])
    return [[int(x), int(y)] for x, y in zip(rng.integers(22, 29, count), rng.integers(28, 60, count), strict=True)]


def make_radiomapseer(root, maps=(0, 1, 2), count=3, missing=True, k2=False):
    """A tree with every folder that the readers know; returns its root."""
    rng = np.random.default_rng(0)
    for map_id in maps:
        rings, parked = outlines(map_id), cars(map_id)
        for name, content in (
            (f"antenna/{map_id}.json", transmitters(map_id, count)),
            (f"polygon/buildings_complete/{map_id}.json", rings),
            (f"polygon/buildings_and_cars/{map_id}.json", rings + parked),
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(json.dumps(content))
        save_mask(root / f"png/buildings_complete/{map_id}.png", rings)
        save_mask(root / f"png/cars/{map_id}.png", parked)
        if missing:
            for number in range(1, 5):
                for version in range(1, 7):
                    left = [
                        ring for k, ring in enumerate(rings) if k not in {(version + i) % 3 for i in range(number)}
                    ]
                    save_mask(root / f"png/buildings_missing{number}/{version}/{map_id}.png", left)
                    path = root / f"polygon/buildings_missing{number}/{version}/{map_id}.json"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(json.dumps(left))
        inside = rasterize(to_pixels(rings), (SIDE, SIDE))
        for tx_id, (x, y) in enumerate(transmitters(map_id, count)):
            dot = np.zeros((SIDE, SIDE), np.uint8)
            dot[SIDE - 1 - y, x] = 255
            save(root / f"png/antennas/{map_id}_{tx_id}.png", dot)
            for simulation in SIMULATIONS:
                gray = rng.integers(1, 256, (SIDE, SIDE)).astype(np.uint8)
                save(root / f"gain/{simulation}/{map_id}_{tx_id}.png", np.where(inside, 0, gray).astype(np.uint8))
            if tx_id < 2:
                save(root / f"gain/IRT4/{map_id}_{tx_id}.png", rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8))
            if k2:
                save(root / f"gain/DPM_k2_neg_norm/{map_id}_{tx_id}.png", np.full((SIDE, SIDE), 51, np.uint8))
                save(root / f"gain/DPMCAR_k2_neg_norm/{map_id}_{tx_id}.png", np.full((SIDE, SIDE), 102, np.uint8))
    return root


def save_mask(path, rings):
    save(path, rasterize(to_pixels(rings), (SIDE, SIDE), RADIOMAPSEER_MASK_OFFSET).astype(np.uint8) * 255)


# ICASSP 2025 ---------------------------------------------------------------------------------------------------------

FREQUENCIES = {1: 868e6, 2: 1.8e9, 3: 3.5e9}


def indoor_place(building, sample, width, height):
    rng = np.random.default_rng([building, sample, 11])
    return int(rng.integers(8, width - 8)), int(rng.integers(8, height - 8))


def indoor_size(building):
    return (60 + 7 * (building % 3), 90 - 11 * (building % 4))  # (width, height)


def indoor_planes(building, place):
    """Reflectance, transmittance and whole-metre distance of a room with a wall across and one down."""
    width, height = indoor_size(building)
    reflectance = np.zeros((height, width), np.uint8)
    transmittance = np.zeros((height, width), np.uint8)
    reflectance[height // 3, :], transmittance[height // 3, :] = 9, 5
    reflectance[:, width // 2 : width // 2 + 2], transmittance[:, width // 2 : width // 2 + 2] = 7, 11
    rows, columns = np.mgrid[:height, :width]
    distance = np.rint(np.hypot(columns - place[0], rows - place[1]) * 0.25).astype(np.uint8)
    return reflectance, transmittance, distance


def make_icassp(root, buildings=(1, 2, 3), samples=2, tasks=(1, 2, 3), swapped=False):
    """Every sample of the tasks; the path loss is free space with the wall's loss nowhere, so that it is easy to
    check.
    """
    rng = np.random.default_rng(0)
    patterns = {1: np.zeros(360), 2: -20 * (1 - np.cos(np.radians(np.arange(360)))) + np.arange(360) * 0.01}
    for antenna, gains in patterns.items():
        path = root / f"Radiation_Patterns/Ant{antenna}_Pattern.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(f"{g:.4f}" for g in gains) + "\n")
    for building in buildings:
        width, height = indoor_size(building)
        path = root / f"Building_Details/B{building}_Details.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"x_min,x_max,y_min,y_max,W,H\n0,{width},0,{height},{width},{height}\n")
        for antenna in patterns:
            for frequency in FREQUENCIES:
                rows = ["X,Y,Azimuth"]
                for sample in range(samples):
                    place = indoor_place(building, sample, width, height)
                    rows.append(",".join(map(str, (*(place[::-1] if swapped else place), 45 * sample))))
                    name = f"B{building}_Ant{antenna}_f{frequency}_S{sample}.png"
                    metres = np.maximum(indoor_planes(building, place)[2].astype(float), 0.125)
                    loss = 20 * np.log10(metres) + 20 * np.log10(FREQUENCIES[frequency] / 1e6) - 27.55
                    loss = np.clip(loss + rng.normal(0, 1, loss.shape), 13, 160)
                    for task in tasks:
                        if (task < 3 and antenna > 1) or (task == 1 and frequency > 1):
                            continue
                        picture = np.stack(indoor_planes(building, place), -1)
                        save(root / f"Inputs/Task_{task}_ICASSP/{name}", picture)
                        save(root / f"Outputs/Task_{task}_ICASSP/{name}", np.rint(loss).astype(np.uint8))
                path = root / f"Positions/Positions_B{building}_Ant{antenna}_f{frequency}.csv"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(rows) + "\n")
    return root

"""`radiodiff simulate`: the layout, repeatability, going on after kill -9, and what it says when it cannot."""

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from radiodiff_diffusers.commands import simulate as command
from radiodiff_diffusers.data import radiomapseer_writer
from radiodiff_diffusers.data.cities import generate_city
from radiodiff_diffusers.data.radiomapseer import read_scene
from radiodiff_diffusers.data.radiomapseer_writer import rings_of
from radiodiff_diffusers.data.simulate import simulate
from radiodiff_diffusers.engines import dominant_path
from radiodiff_diffusers.geometry import RADIOMAPSEER_MASK_OFFSET, rasterize

SMALL = {"cities": 3, "transmitters": 4, "size": 64, "area": 40, "style": "perimeter", "progress": False}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "maps"
    summary = simulate(folder, workers=1, **SMALL)
    assert summary["cities"] == 3 and summary["maps"] == summary["made"] == 12
    return folder


def test_it_writes_radiomapseers_layout(small):
    names = set(contents(small))
    expected = {"manifest.json", ".lock"}
    for m in range(3):
        expected |= {f"antenna/{m}.json", f"polygon/buildings_complete/{m}.json", f"png/buildings_complete/{m}.png"}
        expected |= {f"{sub}/{m}_{t}.png" for sub in ("gain/DPM", "png/antennas") for t in range(4)}
    assert names == expected
    for name in names:
        if name.endswith(".png"):
            image = Image.open(small / name)
            assert image.mode == "L" and image.size == (64, 64)
    places = json.loads((small / "antenna/1.json").read_text())
    for t, (x, y) in enumerate(places):
        dot = np.asarray(Image.open(small / f"png/antennas/1_{t}.png"))
        assert dot[63 - y, x] == 255 and dot.sum() == 255
    manifest = json.loads((small / "manifest.json").read_text())
    assert manifest["finished"] and len(manifest["maps"]) == 3 and manifest["parameters"]["style"] == "perimeter"


def test_what_is_read_back_is_the_city_and_its_map(small):
    seed = int(json.loads((small / "manifest.json").read_text())["maps"][2].rpartition("-")[2])
    city = generate_city(seed, 64, style="perimeter")
    scene = read_scene(small, 2, 3, layout="polygon")
    assert np.array_equal(scene.buildings, city.buildings)
    again = dominant_path(city.replace(transmitter=scene.transmitter))
    gray = np.asarray(Image.open(small / "gain/DPM/2_3.png"))
    assert np.array_equal(np.rint(again.gray), gray)
    assert (gray[city.buildings] == 0).all() and (gray > 0).mean() > 0.3


def test_masks_lie_half_a_pixel_off_the_gain_or_exactly_on_it(small, tmp_path):
    city = read_scene(small, 0, layout="polygon")
    mask = np.asarray(Image.open(small / "png/buildings_complete/0.png")) > 0
    assert np.array_equal(mask, rasterize(city.polygons, city.shape, RADIOMAPSEER_MASK_OFFSET))
    assert not np.array_equal(mask, city.buildings)
    simulate(tmp_path / "exact", workers=1, raster="exact", **SMALL)
    mask = np.asarray(Image.open(tmp_path / "exact/png/buildings_complete/0.png")) > 0
    assert np.array_equal(mask, city.buildings)
    gain = "gain/DPM/0_0.png"
    assert (tmp_path / "exact" / gain).read_bytes() == (small / gain).read_bytes()


def test_courtyards_survive_a_format_without_holes():
    city = generate_city(3, style="perimeter")
    assert any(len(rings) > 1 for rings in city.polygons)
    rings = rings_of(city.polygons, 256)
    assert len(rings) == len(city.polygons) and all(ring[0] == ring[-1] for ring in rings)
    assert all(isinstance(v, int) for ring in rings for point in ring for v in point)
    back = [(np.array(ring, float) * (1, -1) + (-1, 256),) for ring in rings]
    assert np.array_equal(rasterize(back, city.shape), city.buildings)


def test_the_same_bytes_from_any_number_of_workers(small, tmp_path):
    simulate(tmp_path / "two", workers=2, **SMALL)
    assert contents(tmp_path / "two") == contents(small)
    simulate(tmp_path / "other", workers=1, **{**SMALL, "cities": 1, "transmitters": 1}, seed=1)
    assert contents(tmp_path / "other")["gain/DPM/0_0.png"] != contents(small)["gain/DPM/0_0.png"]


def test_it_goes_on_where_it_was_killed(small, tmp_path):
    folder, many = tmp_path / "killed", SMALL | {"cities": 40}
    code = (
        "from radiodiff_diffusers.data.simulate import simulate\n"
        f"if __name__ == '__main__': simulate({str(folder)!r}, workers=2, **{many!r})"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    deadline = time.monotonic() + 60
    while len(list(folder.glob("gain/DPM/*.png"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = len(list(folder.glob("gain/DPM/*.png")))
    assert 8 <= there < 160
    for path in folder.glob("gain/DPM/[!.]*.png"):
        Image.open(path).load()  # none is half-written
    assert not json.loads((folder / "manifest.json").read_text())["finished"]
    time.sleep(1.0)  # its workers notice that they are alone
    left = len(list(folder.glob("gain/DPM/[!.]*.png")))
    time.sleep(0.5)
    assert len(list(folder.glob("gain/DPM/[!.]*.png"))) == left
    (folder / "gain" / "DPM" / ".0_0.png.1.tmp").write_bytes(b"half")

    kept = {path: path.stat().st_mtime_ns for path in folder.glob("gain/DPM/[!.]*.png")}
    summary = simulate(folder, workers=1, **many)
    assert summary["made"] == 4 * many["cities"] - left
    assert all(path.stat().st_mtime_ns == before for path, before in kept.items())
    simulate(tmp_path / "whole", workers=1, **many)
    assert contents(folder) == contents(tmp_path / "whole")
    assert contents(small)["gain/DPM/2_1.png"] == contents(folder)["gain/DPM/2_1.png"]


def test_a_finished_one_makes_nothing_and_takes_more_cities(small, tmp_path):
    folder = tmp_path / "more"
    simulate(folder, workers=1, **{**SMALL, "cities": 2})
    assert simulate(folder, workers=1, **{**SMALL, "cities": 2})["made"] == 0
    assert simulate(folder, workers=1, **SMALL)["made"] == 4
    assert contents(folder) == contents(small)


def test_whatever_is_lost_comes_back_with_the_same_bytes(tmp_path):
    folder, options = tmp_path / "maps", {**SMALL, "cities": 2, "cars": 2, "size": 96, "area": 60, "style": "suburb"}
    simulate(folder, workers=1, **options)
    before = contents(folder)
    lost = ["png/buildings_complete/0.png", "polygon/buildings_complete/1.json", "antenna/0.json", "png/cars/1.png"]
    lost += ["polygon/buildings_and_cars/0.json", "png/antennas/0_3.png", "gain/DPM/1_0.png", "gain/carsDPM/1_2.png"]
    kinds = {str(Path(name).parent) for name in before if "/" in name}
    assert kinds == {str(Path(name).parent) for name in lost}  # one of each kind of file that there is
    for name in lost:
        (folder / name).unlink()
        simulate(folder, workers=1, **options)
        assert contents(folder).keys() == before.keys(), name
    for name in lost:
        (folder / name).unlink()
    (folder / "gain/DPM/0_0.png").write_bytes(b"")
    times = {
        path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.name not in ("manifest.json", ".lock")
    }
    assert simulate(folder, workers=2, **options)["made"] == 4  # 0_0, 0_3, 1_0 and 1_2
    assert contents(folder) == before
    touched = [path.relative_to(folder) for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert [str(path) for path in touched] == ["gain/DPM/0_0.png"]
    assert simulate(folder, workers=1, **options)["made"] == 0


def test_cars_are_obstacles_of_their_own_maps(tmp_path):
    options = {**SMALL, "cities": 1, "size": 128, "area": 100, "style": "suburb"}
    simulate(tmp_path / "cars", workers=1, cars=12, **options)
    names = set(contents(tmp_path / "cars"))
    assert {"png/cars/0.png", "polygon/buildings_and_cars/0.json", "gain/DPM/0_0.png", "gain/carsDPM/0_0.png"} <= names
    together = json.loads((tmp_path / "cars/polygon/buildings_and_cars/0.json").read_text())
    alone = json.loads((tmp_path / "cars/polygon/buildings_complete/0.json").read_text())
    assert together[: len(alone)] == alone and len(together) == len(alone) + 12
    scene = read_scene(tmp_path / "cars", 0, 0, layout="polygon", cars=True)
    assert 60 < scene.cars.sum() < 140  # 12 cars of 8 square metres
    assert not (scene.cars & scene.buildings).any()
    masked = np.asarray(Image.open(tmp_path / "cars/png/cars/0.png")) > 0
    assert 60 < masked.sum() < 140


@pytest.mark.parametrize(("engine", "kind"), [("free_space", "FS"), ("reflected_rays", "RR")])
def test_other_engines_and_files_as_sources(engine, kind, tmp_path):
    houses = ["POLYGON ((20 20, 40 20, 40 30, 20 30, 20 20))", "POLYGON ((5 40, 15 40, 15 60, 5 60, 5 40))"]
    (tmp_path / "two.wkt").write_text("\n".join(houses))
    options = {**SMALL, "cities": None, "style": None}
    summary = simulate(tmp_path / "out", workers=1, engine=engine, sources=[tmp_path / "two.wkt"], **options)
    assert summary["maps"] == 4
    gain = np.asarray(Image.open(tmp_path / f"out/gain/{kind}/0_0.png"))
    scene = read_scene(tmp_path / "out", 0, 0, layout="polygon")
    assert (gain[scene.buildings] == 0).all() and (gain[~scene.buildings] > 0).mean() > (0.99 if kind == "FS" else 0.5)


def test_a_large_file_is_cut_into_maps_and_taken_in_turn(tmp_path):
    rows = [
        f"POLYGON (({x} {y}, {x + 20} {y}, {x + 20} {y + 12}, {x} {y + 12}, {x} {y}))"
        for x in range(0, 300, 30)
        for y in range(0, 300, 25)
    ]
    (tmp_path / "large.wkt").write_text("\n".join(rows))
    options = {**SMALL, "cities": 6, "transmitters": 1, "style": None}
    simulate(tmp_path / "out", workers=1, sources=[tmp_path / "large.wkt", "made-up"], **options)
    names = json.loads((tmp_path / "out/manifest.json").read_text())["maps"]
    assert [name.split("-")[0] for name in names] == ["large", "made"] * 3
    with pytest.raises(ValueError, match="cities of 64 pixels, not 5000"):
        simulate(tmp_path / "no", workers=1, sources=[tmp_path / "large.wkt"], **{**options, "cities": 5000})


def test_a_full_disk_gets_one_line_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    folder, real = tmp_path / "full", Path.write_bytes

    def write(path, data):
        if "gain" in str(path) and "0_2" in path.name:
            real(path, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(ValueError, match="no space left for .*goes on where it stopped") as caught:
        simulate(folder, workers=1, **SMALL)
    assert "\n" not in str(caught.value)
    assert not list(folder.rglob("*.tmp")) and not (folder / "gain/DPM/0_2.png").exists()
    monkeypatch.undo()
    assert simulate(folder, workers=1, **SMALL)["made"] == 10


def test_an_error_in_a_worker_comes_back_as_one_line(tmp_path):
    folder = tmp_path / "blocked"
    simulate(folder, workers=1, **{**SMALL, "cities": 1})
    (folder / "antenna" / "1.json").mkdir()
    with pytest.raises(ValueError, match="cannot write to .*1.json") as caught:
        simulate(folder, workers=2, **SMALL)
    assert "\n" not in str(caught.value)


def test_two_at_once_in_one_folder_are_refused(small):
    fcntl = pytest.importorskip("fcntl")
    with open(small / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another simulation is writing"):
            simulate(small, workers=1, **SMALL)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cities": 0}, "cities must be a whole number from 1 up; got 0"),
        ({"transmitters": 2.5}, "transmitters must be a whole number"),
        ({"size": 4}, "size must be a whole number from 8 up"),
        ({"engine": "magic"}, "engine must be one of dominant_path, reflected_rays, ray_tracing, free_space"),
        ({"style": "moon"}, "style must be one of apartments"),
        ({"raster": "fine"}, "raster must be one of radiomapseer, exact"),
        ({"sources": ["rome"]}, "source 'rome' is neither made-up, nor one of munich"),
        ({"sources": []}, "sources must be one or more of"),
        ({"metres_per_pixel": 0}, "metres_per_pixel must be a number above 0"),
        ({"seed": -1}, "seed must be a whole number from 0 up"),
        ({"workers": 0}, "workers must be a whole number from 1 up"),
        ({"citys": 3}, "simulate has no parameter 'citys'"),
        ({"transmitters": 5000}, "too few for 5000 transmitters"),
        ({"engine_options": {"magic": 3}}, "magic"),
    ],
)
def test_wrong_arguments_get_one_line(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        simulate(tmp_path / "out", **{"workers": 1, **SMALL, **change})
    assert "\n" not in str(caught.value)


def test_other_parameters_in_the_same_folder_are_refused(small, tmp_path):
    with pytest.raises(ValueError, match="holds a simulation with seed 0, not 5: choose another folder"):
        simulate(small, workers=1, **SMALL, seed=5)
    with pytest.raises(ValueError, match="holds 3 cities that this simulation would not make"):
        simulate(small, workers=1, **{**SMALL, "cities": 2})
    simulate(tmp_path / "old", workers=1, **{**SMALL, "cities": 1, "transmitters": 1})
    manifest = json.loads((tmp_path / "old/manifest.json").read_text())
    manifest["engine_constants"]["corner_loss"] = 2.0
    (tmp_path / "old/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="another version of the engine dominant_path"):
        simulate(tmp_path / "old", workers=1, **{**SMALL, "cities": 1, "transmitters": 1})
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="is not empty and holds no manifest.json"):
        simulate(tmp_path, workers=1, **SMALL)
    with pytest.raises(ValueError, match="cannot write to"):
        simulate(tmp_path / "letter.txt", workers=1, **SMALL)


def test_the_command(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    folder = str(tmp_path / "out")
    line = [
        folder,
        "--cities",
        "1",
        "--transmitters",
        "2",
        "--size",
        "64",
        "--area",
        "40",
        "--quiet",
        "--workers",
        "1",
    ]
    assert command.run(parser.parse_args([*line, "--engine-option", "corner_loss=3"])) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 2
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["parameters"]["engine_options"] == {"corner_loss": 3}
    assert manifest["engine_constants"]["corner_loss"] == 3 and manifest["engine_constants"]["sight_exponent"] == 2.5
    with pytest.raises(ValueError, match="NAME=NUMBER"):
        command.run(parser.parse_args([*line, "--engine-option", "corner_loss"]))


def test_images_are_written_whole(tmp_path):
    radiomapseer_writer.write_image(tmp_path / "a" / "b.png", np.eye(8, dtype=np.uint8) * 255)
    assert np.asarray(Image.open(tmp_path / "a/b.png")).trace() == 8 * 255
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]

import json
import shutil

import numpy as np
import pytest
import tiny_sets

from radiodiff_diffusers.cli import main
from radiodiff_diffusers.data.check import check
from radiodiff_diffusers.data.hub import open_dataset, write_parquet
from radiodiff_diffusers.data.radiomapseer import RadioMapSeer


@pytest.fixture(scope="module")
def seer(tmp_path_factory):
    return tiny_sets.make_radiomapseer(tmp_path_factory.mktemp("seer"))


@pytest.fixture(scope="module")
def icassp(tmp_path_factory):
    return tiny_sets.make_icassp(tmp_path_factory.mktemp("icassp"))


def test_a_whole_set_passes(seer, icassp, capsys):
    assert main(["data", "check", str(seer)]) == 0
    assert "all is well" in capsys.readouterr().out
    report = check(icassp)
    assert report.problems == [] and report.files == 6 + 18 + 36 + 2 + 3
    assert "6 samples, 3 buildings (2 to 2 samples each)" in report.facts["task 1"]
    assert "_seen" not in report.facts and report.facts["sizes"].startswith("3: ")
    quick = check(icassp, quick=True)
    assert quick.problems == [] and "_seen" not in quick.facts


def test_everything_wrong_in_radiomapseer_is_named_at_once(seer, tmp_path, capsys):
    root = shutil.copytree(seer, tmp_path / "seer")
    (root / "gain/DPM/0_1.png").unlink()
    (root / "gain/IRT4/2_0.png").unlink()
    (root / "png/cars/1.png").unlink()
    (root / "png/buildings_missing3/2/0.png").unlink()
    (root / "antenna/2.json").unlink()
    (root / "gain/IRT2/1_1.png").write_bytes(b"broken")
    (root / "gain/carsDPM/1_0.png").write_bytes((root / "gain/carsDPM/1_0.png").read_bytes()[:-300])
    tiny_sets.save(root / "gain/DPM/2_2.png", np.ones((9, 9), np.uint8))
    tiny_sets.save(root / "gain/DPM/2_1.png", np.zeros((64, 64), np.uint8))
    tiny_sets.save(root / "png/antennas/0_0.png", np.zeros((64, 64), np.uint8))
    (root / "antenna/1.json").write_text("[[3, 4], [500, 4], [2, 2]]")
    (root / "polygon/buildings_complete/0.json").write_text("[[1, 2")
    assert main(["data", "check", str(root)]) == 1
    out = capsys.readouterr().out
    for line in (
        "gain/DPM/0_1.png: missing",
        "gain/IRT4/2_0.png: missing",
        "png/cars/1.png: missing",
        "png/buildings_missing3/2/0.png: missing",
        "antenna/2.json: missing",
        "gain/IRT2/1_1.png is not an image",
        "gain/carsDPM/1_0.png is damaged",
        "gain/DPM/2_2.png: 9 x 9 pixels, its map has 64 x 64",
        "gain/DPM/2_1.png: no signal anywhere",
        "png/antennas/0_0.png: 0 bright pixels",
        "antenna/1.json: transmitters outside the map: 1",
        "polygon/buildings_complete/0.json is damaged",
    ):
        assert line in out, line
    # what is wrong in antenna/1.json shows at the dots of map 1 as well: three more lines, and no others
    assert out.count("antenna/ says") == 3 and out.strip().endswith("15 problems")
    assert main(["data", "check", str(root), "--quick", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 5


def test_a_complete_set_is_asked_for(seer):
    assert any(
        line == "gain/DPM/700_0.png: missing" or "700" in line
        for line in check(seer, complete=True, quick=True).problems
    )


def test_everything_wrong_in_icassp_is_named_at_once(icassp, tmp_path):
    root = shutil.copytree(icassp, tmp_path / "set")
    (root / "Outputs/Task_1_ICASSP/B1_Ant1_f1_S0.png").unlink()
    (root / "Inputs/Task_2_ICASSP/B2_Ant1_f2_S1.png").unlink()
    (root / "Outputs/Task_3_ICASSP/B1_Ant1_f1_S1.png").write_bytes(b"no")
    tiny_sets.save(root / "Outputs/Task_3_ICASSP/B2_Ant1_f1_S1.png", np.full((4, 4), 50, np.uint8))
    width, height = tiny_sets.indoor_size(3)
    tiny_sets.save(root / "Outputs/Task_3_ICASSP/B3_Ant1_f1_S1.png", np.full((height, width), 200, np.uint8))
    (root / "Positions/Positions_B3_Ant2_f3.csv").write_text("X,Y,Azimuth\n1,1,0\n1,1,0\n")
    (root / "Radiation_Patterns/Ant2_Pattern.csv").write_text("1,2\n")
    (root / "Positions/Positions_B2_Ant2_f1.csv").unlink()
    (root / "Outputs/Task_3_ICASSP/B2_Ant2_f1_S0.png").write_bytes(b"no")  # also where its position is missing
    problems = check(root).problems
    assert sum("Positions_B2_Ant2_f1.csv: no such file" in line for line in problems) == 1
    problems = "\n".join(problems)
    for line in (
        "Outputs/Task_1_ICASSP/B1_Ant1_f1_S0.png: missing",
        "Inputs/Task_2_ICASSP/B2_Ant1_f2_S1.png: missing",
        "B1_Ant1_f1_S1.png is not an image",
        "B2_Ant2_f1_S0.png is not an image",
        "B2_Ant1_f1_S1.png: 4 x 4 pixels",
        "B3_Ant1_f1_S1.png: path loss of 200 to 200 dB",
        "row 0: (1, 1) does not fit the distance channel of B3_Ant2_f3_S0",
        "Ant2_Pattern.csv is damaged",
    ):
        assert line in problems, line
    swapped = tiny_sets.make_icassp(tmp_path / "swapped", buildings=(1,), tasks=(1,), swapped=True)
    assert any("row and column" in note for note in check(swapped).notes)


def test_sizes_are_checked_against_the_building_details(icassp, tmp_path):
    root = shutil.copytree(icassp, tmp_path / "set")
    width, height = tiny_sets.indoor_size(1)
    details = root / "Building_Details"
    (details / "B1_Details.csv").write_text(f"W,H\n{width + 1},{height}\n")
    (details / "B3_Details.csv").unlink()
    for kind, plane in (("Inputs", np.zeros((20, 20, 3), np.uint8)), ("Outputs", np.full((20, 20), 50, np.uint8))):
        tiny_sets.save(root / f"{kind}/Task_1_ICASSP/B2_Ant1_f1_S0.png", plane)
        tiny_sets.save(root / f"{kind}/Task_1_ICASSP/B3_Ant1_f1_S0.png", plane)
    sizes = [line for line in check(root).problems if "distance channel" not in line]
    two, three = ("{} x {}".format(*tiny_sets.indoor_size(building)) for building in (2, 3))
    assert sorted(line.removeprefix(f"{root}/") for line in sizes) == [
        f"Building_Details/B1_Details.csv: {width + 1} x {height} pixels, all 20 inputs have {width} x {height}",
        "Building_Details/B3_Details.csv: missing",
        f"Inputs/Task_1_ICASSP/B2_Ant1_f1_S0.png: 20 x 20 pixels, Building_Details says {two}",
        f"Inputs/Task_1_ICASSP/B3_Ant1_f1_S0.png: 20 x 20 pixels, most of building 3 have {three}",
    ]
    (details / "B2_Details.csv").write_text("W\n3\n")
    assert any("B2_Details.csv is damaged" in line for line in check(root).problems)
    shutil.rmtree(details)
    report = check(root)
    assert any("Building_Details/ is not here" in note for note in report.notes)
    assert sum("pixels, most of building" in line for line in report.problems) == 2


def test_arrange_then_check(icassp, tmp_path, capsys):
    out = tmp_path / "arranged"
    arguments = ["data", "arrange", str(icassp), "-o", str(out), "--size", "48", "--task", "2", "--split-by", "sample"]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(out), "train": 16, "val": 1, "test": 1, "failed": 0}
    report = check(out)
    assert (
        report.problems == []
        and report.facts["sizes"] == "48 x 48"
        and any("are in train and" in n for n in report.notes)
    )
    spoiled = sorted((out / "train/edge").iterdir())[3].name
    for kind in ("image", "edge"):  # both are named, not the first alone
        whole = (out / "train" / kind / spoiled).read_bytes()
        (out / "train" / kind / spoiled).write_bytes(b"no")
        assert f"train/{kind}/{spoiled} is not an image" in check(out).problems[-1]
        (out / "train" / kind / spoiled).write_bytes(whole)
    for kind in ("image", "edge"):
        (out / "train" / kind / spoiled).write_bytes(b"no")
    assert len(check(out).problems) == 2
    next((out / "train/edge").iterdir()).unlink()
    assert [line for line in check(out).problems if line.startswith("train/edge/") and line.endswith("missing")]
    assert main([*arguments, "--fit", "stretch"]) == 2
    assert "unknown fit" in capsys.readouterr().err
    assert main([*arguments, "--hertz", "2.4e9"]) == 2
    assert "--hertz takes NUMBER=HERTZ" in capsys.readouterr().err
    other = [str(tmp_path / "other"), "--task", "2", "--size", "48", "--frequencies", "2", "--hertz", "2=2.4e9"]
    assert main(["data", "arrange", str(icassp), "-o", *other]) == 0
    made = json.loads((tmp_path / "other/manifest.json").read_text())["samples"]
    assert len(made) == 6 and {about["frequency_hz"] for about in made.values()} == {2.4e9}


def test_export_to_parquet_and_to_files(seer, tmp_path, capsys):
    out = tmp_path / "parquet"
    assert main(["data", "export", str(seer), "-o", str(out), "--splits", "all", "--option", "simulation=IRT2"]) == 0
    assert json.loads(capsys.readouterr().out)["train"] == 9
    assert main(["data", "check", str(out)]) == 0
    assert "rows: train 9" in capsys.readouterr().out
    assert len(open_dataset(out, "train")) == len(open_dataset(out, "all")) == 9
    shard = next((out / "data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-50])
    assert main(["data", "check", str(out)]) == 1
    back = tmp_path / "files"
    arguments = ["data", "export", str(seer), "-o", str(back), "--splits", "all", "--format", "radiomapseer"]
    assert main(arguments) == 0 and (back / "gain/DPM/2_2.png").is_file()
    assert main(["data", "export", str(seer), "-o", str(tmp_path / "x"), "--option", "task"]) == 2
    assert "NAME=VALUE" in capsys.readouterr().err


def test_export_names_the_simulation(seer, tmp_path, capsys):
    command = ["data", "export", str(seer), "--format", "radiomapseer", "--splits", "all", "--option"]
    for options, folder in (
        (["simulation=IRT2"], "IRT2"),
        (["simulation=IRT2", "--option", "cars_in_map=true"], "carsIRT2"),
    ):
        assert main([*command, *options, "-o", str(tmp_path / folder)]) == 0
        assert [p.name for p in (tmp_path / folder / "gain").iterdir()] == [folder]
    assert main([*command, "simulation=rand", "-o", str(tmp_path / "rand")]) == 2
    assert "no folder for simulation=rand" in capsys.readouterr().err


def test_export_takes_the_splits_that_have_samples(tmp_path, capsys):
    root = tiny_sets.make_radiomapseer(tmp_path / "seer", maps=(0,), missing=False)
    assert main(["data", "export", str(root), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"folder": str(tmp_path / "out"), "train": 3}
    assert "split val is left out" in said.err and "split test is left out" in said.err
    assert main(["data", "export", str(root), "-o", str(tmp_path / "x"), "--splits", "val"]) == 2
    assert main(["data", "export", str(tmp_path / "none"), "-o", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().out == ""


def test_spectrograms_are_checked(tmp_path):
    for user in range(2):
        tiny_sets.save(tmp_path / f"user_{user:02d}/0.png", np.zeros((8, 8), np.uint8))
    assert check(tmp_path).problems == []
    (tmp_path / "user_01/1.png").write_bytes(b"x")
    assert len(check(tmp_path).problems) == 1


def test_spectrograms_in_parquet_are_checked(tmp_path):
    for name in ("0.png", "1.png"):
        tiny_sets.save(tmp_path / "users/user_00" / name, np.zeros((8, 8), np.uint8))
    write_parquet({"train": open_dataset(tmp_path / "users", "all")}, tmp_path / "good")
    assert check(tmp_path / "good").problems == []
    data = open_dataset(tmp_path / "users", "all")
    (tmp_path / "users/user_00/1.png").write_bytes(b"x")
    write_parquet({"train": data}, tmp_path / "bad")
    (line,) = check(tmp_path / "bad").problems
    assert "train-00000-of-00001.parquet" in line and "1.png" in line


def test_a_damaged_outline_names_its_file(seer, tmp_path):
    for damage in ('{"a": 1}', "[[1, 2]]"):
        shutil.copytree(seer, tmp_path / "maps", dirs_exist_ok=True)
        (tmp_path / "maps/polygon/buildings_complete/1.json").write_text(damage)
        (line,) = [x for x in check(tmp_path / "maps").problems if "polygon" in x]
        assert "polygon/buildings_complete/1.json is damaged" in line
        with pytest.raises(ValueError, match="buildings_complete/1.json is damaged"):
            RadioMapSeer(tmp_path / "maps", "all", layout="polygon", cars_in_input=True, maps=[1])[0]


def test_help_lists_the_actions(capsys):
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {name}" in out for name in ("check", "arrange", "export"))
    assert main(["data", "check", "nowhere"]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err

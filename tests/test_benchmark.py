"""The benchmark: scores that can be worked out by hand, seeds, time and memory, tables, and the command."""

import csv
import time

import numpy as np
import pytest
from PIL import Image
from tiny_sets import make_radiomapseer

from radiodiff_diffusers import GainScale, RadioMap, Scene
from radiodiff_diffusers.cli import main
from radiodiff_diffusers.evaluation.benchmark import (
    COLUMNS,
    TestSet,
    free_pixels,
    markdown,
    run_benchmark,
    score_map,
    write_tables,
)
from radiodiff_diffusers.evaluation.metrics import map_metrics
from radiodiff_diffusers.evaluation.predictors import Predictor, make_predictors


def pair(seed=0, side=48):
    """Gray levels in steps of 1 of 40..200, buildings black, but for one building pixel that the truth has not."""
    rng = np.random.default_rng([seed, 11])
    buildings = np.zeros((side, side), bool)
    buildings[10:20, 10 + seed : 22 + seed] = True
    gray = rng.integers(60, 200, (side, side)).astype(np.float32)
    gray[buildings] = 0
    gray[30, 30] = 0  # no building in the mask, none of the free pixels either
    return Scene(buildings, transmitter=(5, 5), name=f"city-{seed}"), RadioMap.from_gray(gray)


def predictor(name, function, **options):
    return Predictor(name, lambda: lambda scenes: [function(scene) for scene in scenes], **options)


def shifted(truths, levels):
    """Predicts the truth plus so many gray levels; knows the truth by the city's name."""

    def predict(scene):
        truth = truths[scene.name]
        return RadioMap.from_gray(np.clip(truth.gray + levels, 0, 255))

    return predict


@pytest.fixture
def pairs():
    return [pair(seed) for seed in range(4)]


@pytest.fixture
def truths(pairs):
    return {scene.name: truth for scene, truth in pairs}


def test_scores_of_one_map_worked_out_by_hand():
    scene, truth = pair()
    free = free_pixels(scene, truth)
    assert not free[30, 30] and free.sum() == 48 * 48 - 10 * 12 - 1
    gray = truth.gray.copy()
    gray[free] += 5.1
    scores = score_map(RadioMap.from_gray(gray), truth, scene)
    assert scores["raw/rmse/free"] == pytest.approx(0.02, rel=1e-4) == scores["raw/mae/free"]
    assert scores["raw/rmse_db/free"] == pytest.approx(0.02 * 99.16, rel=1e-4)
    assert scores["raw/nmse/free"] == pytest.approx(5.1**2 * free.sum() / np.square(truth.gray[free]).sum(), rel=1e-4)
    assert scores["thr0.2/rmse/free"] == pytest.approx(0.025, rel=1e-4)
    assert scores["thr0.2/rmse_db/free"] == pytest.approx(0.02 * 99.16, rel=1e-4)
    for part in ("line_of_sight", "shadow", "shadow_edge"):
        assert scores[f"raw/rmse_db/{part}"] == pytest.approx(0.02 * 99.16, rel=1e-4)
    whole = map_metrics(RadioMap.from_gray(gray), truth, "raw")
    assert {name: scores[f"raw/{name}"] for name in whole} == whole
    assert not any(name.startswith("spread") for name in scores)


def test_parts_of_the_map_are_told_apart():
    scene, truth = pair()
    seen = scene.plane("visibility") > 0
    gray = truth.gray.copy()
    gray[~seen & ~scene.buildings] += 10
    gray[30, 30] = 0
    scores = score_map(RadioMap.from_gray(gray), truth, scene)
    assert scores["raw/rmse_db/line_of_sight"] == pytest.approx(0, abs=1e-6)
    assert scores["raw/rmse_db/shadow"] == pytest.approx(10 / 255 * 99.16, rel=1e-3)
    assert 0 < scores["raw/rmse_db/shadow_edge"] < scores["raw/rmse_db/shadow"]


def test_spread_is_scored_on_free_pixels():
    scene, truth = pair()
    off = RadioMap(truth.gain_db + 3, std_db=np.full(truth.shape, 2.0))
    scores = score_map(off, truth, scene)
    assert scores["spread/within_2_std"] == 1 and scores["spread/within_1_std"] == 0
    assert scores["spread/rmse_db"] == pytest.approx(3, rel=1e-4)


def test_a_map_on_another_scale_is_read_on_the_truths():
    scene, truth = pair()
    loss = RadioMap.from_gray(np.where(scene.buildings, 160, 90), scale=GainScale.INDOOR)
    same = RadioMap(loss.gain_db.copy())  # RadioMapSeer's scale by default
    assert score_map(same, loss, scene)["raw/rmse"] == pytest.approx(0, abs=1e-6)


def test_means_are_over_maps_and_the_worst_come_first(pairs, truths):
    def worse_each_time(scene):
        return shifted(truths, 2 * (1 + int(scene.name[-1])))(scene)

    data = TestSet(pairs)
    benchmark = run_benchmark(
        data,
        [predictor("oracle", shifted(truths, 0)), predictor("off", worse_each_time)],
        worst=2,
        progress=False,
    )
    oracle, off = benchmark.results
    assert oracle.means()["raw/nmse"] == pytest.approx(0, abs=1e-9) and oracle.means()["raw/ssim"] == pytest.approx(1)
    by_hand = [map_metrics(worse_each_time(scene), truth, "thr0.2")["nmse"] for scene, truth in pairs]
    assert off.means()["thr0.2/nmse"] == pytest.approx(np.mean(by_hand))
    assert [row["map"] for row in off.rows] == [f"city-{i}" for i in range(4)]
    assert [case.name for case in off.worst] == ["city-3", "city-2"]


def test_batches_score_as_single_maps_do_and_time_is_shared(pairs, truths):
    calls = []

    def batched(scenes):
        calls.append(len(scenes))
        time.sleep(0.06)
        return [shifted(truths, 3)(scene) for scene in scenes]

    one = run_benchmark(TestSet(pairs), [predictor("p", shifted(truths, 3))], progress=False).results[0]
    three = run_benchmark(TestSet(pairs), [Predictor("p", lambda: batched)], batch_size=3, progress=False).results[0]
    assert calls == [3, 3, 1]  # the first is not timed
    assert [r["raw/nmse"] for r in one.rows] == [r["raw/nmse"] for r in three.rows]
    assert 0.02 <= three.rows[0]["seconds"] < 0.055 < 0.06 <= three.rows[3]["seconds"]


def test_each_predictor_computes_its_own_rays(pairs):
    found = []

    def looks(scene):
        found.append(dict(scene._planes))
        scene.plane("visibility")
        return RadioMap.from_gray(np.zeros(scene.shape))

    run_benchmark(TestSet(pairs), [predictor("a", looks), predictor("b", looks)], progress=False)
    assert len(found) == 10 and not any(found)


def test_the_first_call_knows_nothing_of_the_real_cities(pairs, truths):
    shapes = []

    def looks(scene):
        shapes.append(scene)
        return RadioMap.from_gray(np.zeros(scene.shape))

    run_benchmark(TestSet(pairs), [predictor("a", looks)], progress=False)
    warm, real = shapes[0], shapes[1]
    assert not np.array_equal(warm.buildings, real.buildings)
    assert np.array_equal(warm.buildings[:, ::-1], real.buildings) and warm.transmitter == (42, 5)
    assert np.array_equal(np.isnan(warm.measurements[:, ::-1]), np.isnan(real.measurements))


def test_memory_is_what_the_predictor_takes(pairs):
    def hungry():
        model = np.ones(30 * 2**17)  # 30 MB that it holds

        def predict(scenes):
            np.ones(50 * 2**17).sum()
            return [RadioMap.from_gray(np.full(s.shape, model[0])) for s in scenes]

        return predict

    modest = predictor("modest", lambda scene: RadioMap.from_gray(np.zeros(scene.shape)))
    benchmark = run_benchmark(TestSet(pairs), [modest, Predictor("hungry", hungry), modest], progress=False)
    first, second, third = (result.megabytes for result in benchmark.results)
    if np.isnan(second):
        pytest.skip("this system does not tell a process its peak memory")
    assert 75 < second < 110
    assert first < 15 and third < 15


def test_which_maps_and_where_measured_is_decided_by_the_seed(pairs):
    def places(seed, **options):
        return [
            np.isfinite(scene.measurements) for scene, _ in TestSet([pair(i) for i in range(4)], seed=seed, **options)
        ]

    for scene, truth in TestSet([pair(i) for i in range(4)], measurements=17):
        known = np.isfinite(scene.measurements)
        assert known.sum() == 17 and not (known & scene.buildings).any()
        assert np.array_equal(scene.measurements[known], truth.gain_db[known])
    assert all(np.array_equal(a, b) for a, b in zip(places(3), places(3), strict=True))
    assert not np.array_equal(places(3)[0], places(4)[0])
    few, many = places(3, measurements=10), places(3, measurements=40)
    assert all((f & m == f).all() for f, m in zip(few, many, strict=True))  # more measurements keep the earlier ones
    chosen = TestSet(pairs, count=2, seed=1).indices
    assert len(chosen) == 2 and np.array_equal(chosen, TestSet(pairs, count=2, seed=1).indices)
    assert {tuple(TestSet(pairs, count=2, seed=s).indices) for s in range(20)} != {tuple(chosen)}
    assert len(TestSet(pairs, count=99)) == 4


def test_measurements_of_the_data_set_itself_are_kept(pairs):
    own = np.full((48, 48), np.nan, np.float32)
    own[0, 0] = -70
    pairs[0][0].measurements = own
    assert np.isfinite(TestSet(pairs, measurements=50)[0][0].measurements).sum() == 1


@pytest.mark.parametrize(
    "options, says",
    [
        ({"count": 0}, "count must be at least 1; got 0"),
        ({"measurements": -1}, "measurements must be 0 or more"),
        ({"places": "roofs"}, "unknown places for measurements 'roofs'"),
    ],
)
def test_wrong_options_get_one_line(pairs, options, says):
    with pytest.raises(ValueError, match=says):
        TestSet(pairs, **options)


def test_a_benchmark_without_sense_is_refused_at_once(pairs):
    with pytest.raises(ValueError, match="no predictor was given"):
        run_benchmark(TestSet(pairs), [])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        run_benchmark(TestSet(pairs), make_predictors("nearest"), batch_size=0)
    with pytest.raises(ValueError, match="kriging needs measurements"):
        run_benchmark(TestSet(pairs, measurements=0), make_predictors("kriging"), progress=False)
    with pytest.raises(ValueError, match="has no maps"):
        TestSet([])


def test_tables_say_what_was_measured(pairs, truths, tmp_path):
    sure = predictor("sure/off", lambda s: RadioMap(truths[s.name].gain_db - 2, std_db=np.ones(s.shape)))
    benchmark = run_benchmark(
        TestSet(pairs, seed=7), [predictor("oracle", shifted(truths, 0)), sure], worst=1, progress=False
    )
    written = write_tables(benchmark, tmp_path / "out" / "table.md", title="A table")
    text = written[0].read_text()
    assert text.startswith("# A table") and "4 of the 4 maps of list" in text and "seed 7" in text
    for protocol in ("raw", "thr0.2"):
        assert f"## `{protocol}`" in text
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    headings = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert headings == ["predictor", *COLUMNS, "s a map", "MB"]
    cells = dict(zip(headings, (cell.strip() for cell in lines[2].strip("|").split("|")), strict=True))
    assert cells["predictor"] == "sure/off"
    mean = benchmark.results[1].means()
    assert cells["NMSE"] == f"{mean['raw/nmse']:.4f}" and cells["free RMSE dB"] == f"{mean['raw/rmse_db/free']:.2f}"
    assert "## Spread" in text and "| sure/off | 0.000 | " in text
    averages = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [(row["predictor"], row["protocol"], row["maps"]) for row in averages] == [
        (name, protocol, "4") for name in ("oracle", "sure/off") for protocol in ("raw", "thr0.2")
    ]
    assert float(averages[3]["nmse/free"]) == pytest.approx(mean["thr0.2/nmse/free"])
    maps = list(csv.DictReader((tmp_path / "out" / "table_maps.csv").open()))
    assert len(maps) == 8 and maps[5]["map"] == "city-1"
    assert float(maps[5]["raw/rmse_db/free"]) == pytest.approx(benchmark.results[1].rows[1]["raw/rmse_db/free"])
    for picture in written[3:]:
        assert f"]({picture.relative_to(tmp_path / 'out').as_posix()})" in text
        assert np.asarray(Image.open(picture).convert("L")).std() > 10
    assert [p.name for p in written[3:]] == ["oracle.png", "sure_off.png"]
    with pytest.raises(ValueError, match="ends in .md"):
        write_tables(benchmark, tmp_path / "table.txt")
    assert "nan" not in markdown(benchmark).lower()


# The command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_radiomapseer(tmp_path_factory.mktemp("sets") / "RadioMapSeer", missing=False)


def test_command_on_a_folder(folder, tmp_path, capsys):
    words = ["evaluate", "maps", str(folder), "-p", "nearest", "dominant_path", "--count", "3", "--measurements", "20"]
    assert (
        main([*words, "--layout", "polygon", "--option", "simulation=IRT2", "-o", str(tmp_path / "t.md"), "--quiet"])
        == 0
    )
    said = capsys.readouterr()
    assert "layout polygon" in said.out and "simulation IRT2" in said.out and "20 measurements" in said.out
    assert "| dominant_path |" in said.out and "wrote" in said.out
    assert (tmp_path / "t_worst" / "dominant_path.png").is_file()
    averages = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert {row["maps"] for row in averages} == {"3"}


@pytest.mark.parametrize(
    "words, says",
    [
        (["FOLDER", "-p", "krig"], "unknown predictor 'krig'"),
        (["./nowhere", "-p", "nearest"], "nowhere: no such folder"),
        (["FOLDER", "-p", "nearest", "--measurements", "0"], "nearest needs measurements"),
        (["FOLDER", "-p", "nearest", "-o", "table.html"], "-o takes a Markdown file"),
        (["FOLDER", "-p", "nearest", "--option", "missing"], "--option takes NAME=VALUE"),
        (["FOLDER", "-p", "nearest", "--option", "planes=3"], "planes"),
        (["FOLDER", "-p", "nearest", "--simulation", "IRT9"], "gain/IRT9"),
        (["FOLDER", "-p", "model:/no/folder@1"], "/no/folder: no such folder"),
        (["FOLDER", "-p", "nearest", "--num-maps", "0"], "--num-maps must be at least 1"),
    ],
)
def test_wrong_words_get_one_clear_line(folder, words, says, capsys):
    assert main(["evaluate", "maps", *(str(folder) if word == "FOLDER" else word for word in words), "--quiet"]) == 2
    said = capsys.readouterr()
    assert says in said.err and not said.out
    assert said.err.startswith("radiodiff evaluate: ")


def test_the_other_two_are_handed_their_own_words(capsys, monkeypatch):
    from radiodiff_diffusers.evaluation import tokenizer

    given = []
    monkeypatch.setattr(tokenizer, "run", lambda args: given.append(vars(args)) or 0)
    assert main(["evaluate", "tokenizer", "folder", "images", "--size", "64", "--no-fid"]) == 0
    assert given[0]["tokenizer"] == "folder" and given[0]["size"] == 64 and given[0]["no_fid"]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "tokenizer", "--help"])
    assert stop.value.code == 0 and "radiodiff evaluate tokenizer" in capsys.readouterr().out

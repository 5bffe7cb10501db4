"""Edge maps: each detector on an edge whose answer is known, layouts, resuming, failures, and the page."""

import argparse

import numpy as np
import pytest
from PIL import Image

from radiodiff_diffusers.commands import data_edges as command
from radiodiff_diffusers.data.edges import (
    METHODS,
    EdgeOptions,
    edge_map,
    find_images,
    flat_names,
    make_edges,
    split_by_map,
)
from radiodiff_diffusers.reports.edges import analyze_edges


def step(height=100, side=32):
    """Dark left half, right half `height` gray levels brighter."""
    plane = np.full((side, side), 20, np.uint8)
    plane[:, side // 2 :] += np.uint8(height)
    return plane


def save(path, plane):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(plane, np.uint8)).save(path)


def read(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("method", ["sobel", "prewitt", "gradient", "laplacian"])
def test_gradient_detectors_answer_the_height_of_a_step(method):
    edges = edge_map(step(100), EdgeOptions(method))
    assert (edges[:, 15:17] == 100).all() and (edges[:, :15] == 0).all() and (edges[:, 17:] == 0).all()
    # The scale is fixed: half the step, half the answer.
    assert (edge_map(step(50), EdgeOptions(method))[:, 15] == 50).all()
    assert (edge_map(step(100).T.copy(), EdgeOptions(method)) == edges.T).all()


def test_canny_marks_one_line_and_thresholds_decide():
    edges = edge_map(step(100), EdgeOptions("canny"))
    assert set(np.unique(edges)) == {0, 255} and ((edges > 0).sum(1) == 1).all()
    assert edge_map(step(20), EdgeOptions("canny", low=200, high=300)).max() == 0


def test_contour_draws_the_border_of_what_is_above_each_level():
    plane = np.zeros((20, 20), np.uint8)
    plane[5:15, 5:15] = 100
    edges = edge_map(plane, EdgeOptions("contour", low=50, high=150))
    assert (edges > 0).sum() == 36 and edges[5, 5] == 255 and edges[6, 6] == 0 and edges[4, 4] == 0
    assert edge_map(plane, EdgeOptions("contour", low=120, high=150)).max() == 0


def test_ridge_marks_a_bright_line_and_not_a_step():
    plane = np.zeros((32, 32), np.uint8)
    plane[:, 16] = 200
    ridge = edge_map(plane, EdgeOptions("ridge"))
    assert (ridge.argmax(1) == 16).all() and ridge[:, 16].min() > 100 and ridge[:, :8].max() == 0
    assert edge_map(255 - plane, EdgeOptions("ridge"))[:, 16].max() == 0, "a dark line is no ridge"


def test_thresholds_stretch_and_cut():
    edges = edge_map(step(100), EdgeOptions("sobel", low=50, high=150))
    assert edges[0, 15] == 128 and edge_map(step(40), EdgeOptions("sobel", low=50, high=150)).max() == 0
    assert edge_map(step(200), EdgeOptions("sobel", low=50, high=150))[0, 15] == 255


def test_size_and_blur():
    assert edge_map(step(), EdgeOptions("sobel", size=16)).shape == (16, 16)
    sharp, soft = (edge_map(step(200), EdgeOptions("sobel", blur=blur)) for blur in (0, 2))
    assert soft.max() < sharp.max() and (soft > 10).sum() > (sharp > 10).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "use one of canny, sobel"),
        ({"low": 100, "high": 50}, "0 <= low < high"),
        ({"blur": -1}, "blur must be 0 or above"),
        ({"size": 2}, "8 to 8192"),
    ],
)
def test_wrong_options_are_one_clear_line(options, message):
    with pytest.raises(ValueError, match=message):
        EdgeOptions(**options)


# A whole data set --------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "set"
    rng = np.random.default_rng(0)
    for folder in ("gain/DPM", "gain/IRT2"):
        for m in range(10):
            for t in range(2):
                save(root / folder / f"{m}_{t}.png", rng.integers(0, 255, (24, 30)))
    return root


def test_folders_are_kept(images, tmp_path):
    result = make_edges(images, tmp_path / "out", EdgeOptions("sobel"), workers=1, progress=False)
    assert (result.written, result.skipped, result.failures) == (40, 0, [])
    expected = edge_map(read(images / "gain/IRT2/3_1.png"), EdgeOptions("sobel"))
    assert (read(tmp_path / "out" / "gain/IRT2/3_1.png") == expected).all()


def test_pairs_have_equal_names_and_sizes_and_no_map_on_both_sides(images, tmp_path):
    out = tmp_path / "pairs"
    make_edges(images / "gain/DPM", out, EdgeOptions(size=16), "pairs", (0.8, 0.2), workers=2, progress=False)
    sides = {}
    for part in ("train", "val"):
        names = sorted(p.name for p in (out / part / "image").iterdir())
        assert names == sorted(p.name for p in (out / part / "edge").iterdir())
        assert all(read(out / part / kind / names[0]).shape == (16, 16) for kind in ("image", "edge"))
        sides[part] = {name.split("_")[0] for name in names}
    assert len(sides["train"]) == 8 and len(sides["val"]) == 2 and not sides["train"] & sides["val"]
    assert not list(out.rglob(".*"))


def test_repeated_names_get_their_folders_in_front(images):
    names = flat_names(find_images(images))
    assert len(set(names.values())) == 40 and "gain_DPM_0_0.png" in names.values()
    assert sorted(flat_names(find_images(images, "gain/DPM/*.png")).values())[0] == "0_0.png"


def test_a_stopped_run_goes_on_and_changes_nothing_else(images, tmp_path):
    out = tmp_path / "out"
    make_edges(images, out, workers=1, progress=False)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.png")}
    (out / "gain/DPM/0_0.png").unlink()
    result = make_edges(images, out, workers=1, progress=False)
    assert (result.written, result.skipped) == (1, 39)
    assert {p for p in before if p.stat().st_mtime_ns != before[p]} == {out / "gain/DPM/0_0.png"}
    with pytest.raises(ValueError, match="made with method 'canny' not 'sobel'"):
        make_edges(images, out, EdgeOptions("sobel"), workers=1, progress=False)
    assert make_edges(images, out, EdgeOptions("sobel"), workers=1, overwrite=True, progress=False).written == 40


def test_failures_are_listed_retried_and_not_fatal(images, tmp_path, monkeypatch):
    from radiodiff_diffusers.data import edges

    broken = images / "gain/DPM/4_1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    tries = []
    real = edges.read_gray
    monkeypatch.setattr(edges, "read_gray", lambda path: (tries.append(path), real(path))[1])
    result = make_edges(images, tmp_path / "out", workers=1, retries=2, progress=False)
    assert result.written == 39 and [name for name, _ in result.failures] == ["gain/DPM/4_1.png"]
    assert tries.count(broken) == 3
    assert (tmp_path / "out" / "failures.txt").read_text().startswith("gain/DPM/4_1.png\t")
    broken.write_bytes(whole)
    assert make_edges(images, tmp_path / "out", workers=1, progress=False).written == 1
    assert not (tmp_path / "out" / "failures.txt").exists()


def test_no_workers_is_one_clear_line(images, tmp_path):
    with pytest.raises(ValueError, match="workers must be at least 1; got 0"):
        make_edges(images, tmp_path / "out", workers=0, progress=False)


def test_edges_inside_the_data_set_do_not_feed_on_themselves(images):
    make_edges(images, images / "edges", workers=1, progress=False)
    assert make_edges(images, images / "edges", workers=1, progress=False).written == 0


@pytest.mark.parametrize("shares", [(0.5, 0.6), (1.0,), (0.7, 0.2, 0.2)])
def test_a_wrong_split_is_one_clear_line(images, shares):
    with pytest.raises(ValueError, match="add up to 1"):
        split_by_map(find_images(images), shares)


def test_the_page_writes_no_edge_maps(images, tmp_path):
    (images / "gain/DPM/0_0.png").write_bytes(b"")
    _, page = analyze_edges(images, tmp_path / "page", workers=1, progress=False)
    text = page.read_text()
    assert "40 images" in text and "1 measured image could not be read" in text
    assert all(f">{name}" in text for name in METHODS) and text.count("data:image/png;base64,") == 2
    assert {p.parent.name for p in (tmp_path / "page").rglob("*.png")} == {"figures"}


def test_the_command(images, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert set(command.METHODS) == set(METHODS)
    arguments = [
        str(images),
        "-o",
        str(tmp_path / "o"),
        "--method",
        "prewitt",
        "--layout",
        "pairs",
        "--split",
        "0.5,0.5",
    ]
    assert command.run(parser.parse_args([*arguments, "--workers", "1"])) == 0
    assert "40 edge maps written" in capsys.readouterr().out and (tmp_path / "o/val/edge").is_dir()
    with pytest.raises(ValueError, match="--split must be shares"):
        command.run(parser.parse_args([str(images), "--layout", "pairs", "--split", "most"]))
    with pytest.raises(ValueError, match="a split needs the layout of pairs"):
        command.run(parser.parse_args([str(images), "-o", str(tmp_path / "p"), "--split", "0.5,0.5"]))
    with pytest.raises(ValueError, match="no such folder"):
        command.run(parser.parse_args([str(tmp_path / "none")]))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"x")
    assert command.run(parser.parse_args([str(tmp_path / "bad"), "--workers", "1"])) == 1

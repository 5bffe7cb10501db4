"""Folders of spectrograms: labels, resizing, shifts, simulated users, and folders that are wrong."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from radiodiff_diffusers.data.micro_doppler import (
    MicroDopplerFolder,
    find_users,
    load_image,
    shift_time,
    simulate_users,
)
from radiodiff_diffusers.engines import gait


def make_folder(root, names, count=2, size=(32, 32), suffix="png"):
    rng = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f"{i}.{suffix}")
    return root


def test_numeric_order_not_alphabetical(tmp_path):
    make_folder(tmp_path / "a", ["ID_1", "ID_2", "ID_10", "ID_11"])
    assert find_users(tmp_path / "a") == {0: "ID_1", 1: "ID_2", 9: "ID_10", 10: "ID_11"}
    make_folder(tmp_path / "b", ["user_00", "user_1", "user_30"])
    assert find_users(tmp_path / "b") == {0: "user_00", 1: "user_1", 30: "user_30"}
    make_folder(tmp_path / "c", ["01", "02", "31"])
    assert list(find_users(tmp_path / "c")) == [0, 1, 30]
    make_folder(tmp_path / "d", ["person-3", "person-0"])
    assert find_users(tmp_path / "d") == {0: "person-0", 3: "person-3"}


def test_missing_users_keep_the_ids_of_the_others(tmp_path, caplog):
    make_folder(tmp_path, ["user_00", "user_02", "user_03"])
    with caplog.at_level(logging.WARNING):
        dataset = MicroDopplerFolder(tmp_path, size=32)
    assert "no images of class 1" in caplog.text
    assert dataset.num_classes == 4 and sorted(set(dataset.labels)) == [0, 2, 3]
    with pytest.raises(ValueError, match="1 of 4 users have no folder, the first is class 1"):
        MicroDopplerFolder(tmp_path, num_classes=4)
    assert MicroDopplerFolder(tmp_path, num_classes=6, allow_missing=True).num_classes == 6
    with pytest.raises(ValueError, match="folder user_03 is class 3, but there are 3 classes"):
        MicroDopplerFolder(tmp_path, num_classes=3, allow_missing=True)


def test_images_of_conditions_in_natural_order(tmp_path):
    for condition in ("Normal_line", "Bag_free"):
        make_folder(tmp_path / "01", [condition], count=11, suffix="jpg")
    dataset = MicroDopplerFolder(tmp_path, size=32)
    assert len(dataset) == 22
    assert [dataset.items[i][0].stem for i in range(11)] == [str(i) for i in range(11)]
    assert dataset[0]["condition"] == "Bag_free" and dataset[21]["condition"] == "Normal_line"
    assert dataset[0]["label"] == 0 and dataset[0]["user"] == "01"


def test_resized_straight_to_size_with_lanczos(tmp_path):
    """The whole of a wide image is kept: nothing of time is cropped away."""
    pixels = np.random.default_rng(1).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = load_image(tmp_path / "x.png", 64)
    expected = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.LANCZOS), np.float32)
    assert image.shape == (3, 64, 64) and image.dtype == np.float32
    assert np.array_equal(image, (expected / 127.5 - 1).transpose(2, 0, 1))
    gray = load_image(tmp_path / "x.png", 64, channels=1)
    assert gray.shape == (1, 64, 64) and -1 <= gray.min() < gray.max() <= 1
    Image.fromarray(pixels[:, :, 0]).save(tmp_path / "gray.png")
    repeated = load_image(tmp_path / "gray.png", 64)
    assert np.array_equal(repeated[0], repeated[2])


def test_augmentation_only_when_asked(tmp_path):
    make_folder(tmp_path, ["user_0"], count=8)
    plain = MicroDopplerFolder(tmp_path, size=32)
    assert np.array_equal(plain[0]["image"], plain[0]["image"])
    shifted = MicroDopplerFolder(tmp_path, size=32, augment={"time_shift": 0.2}, seed=3)
    again = MicroDopplerFolder(tmp_path, size=32, augment={"time_shift": 0.2}, seed=3)
    first = [shifted[i]["image"] for i in range(8)]
    assert all(np.array_equal(a, again[i]["image"]) for i, a in enumerate(first))
    assert any(not np.array_equal(a, plain[i]["image"]) for i, a in enumerate(first))
    shifted.set_epoch(1)
    assert any(not np.array_equal(a, shifted[i]["image"]) for i, a in enumerate(first))
    row = np.arange(5.0)[None]
    assert shift_time(row, 2).tolist() == [[0, 0, 0, 1, 2]] and shift_time(row, -1).tolist() == [[1, 2, 3, 4, 4]]
    for wrong, why in (("time_flip", "reverses time"), ("color_jitter", "measurement"), ("rotation", "unknown")):
        with pytest.raises(ValueError, match=why):
            MicroDopplerFolder(tmp_path, augment={wrong: 1})


def test_split_keeps_the_share_of_every_user(tmp_path):
    make_folder(tmp_path, ["user_0", "user_1"], count=10)
    dataset = MicroDopplerFolder(tmp_path, size=32)
    first, second = dataset.split(0.8, seed=1)
    assert np.bincount(first.labels).tolist() == [8, 8] and np.bincount(second.labels).tolist() == [2, 2]
    assert not {i[0] for i in first.items} & {i[0] for i in second.items}
    assert [i[0] for i in dataset.split(0.8, seed=1)[0].items] == [i[0] for i in first.items]


def test_a_loader_makes_batches(tmp_path):
    from torch.utils.data import DataLoader

    make_folder(tmp_path, ["user_0", "user_1"], count=3)
    batch = next(iter(DataLoader(MicroDopplerFolder(tmp_path, size=32), batch_size=4)))
    assert batch["image"].shape == (4, 3, 32, 32) and batch["label"].tolist() == [0, 0, 0, 1]


def test_simulated_users_continue_and_repeat(tmp_path):
    options = dict(users=2, images_per_user=3, conditions=("Normal_line", "bag_free"), size=64, processes=1)
    root = simulate_users(tmp_path / "a", **options)
    dataset = MicroDopplerFolder(root, size=64, num_classes=2)
    assert len(dataset) == 6 and json.loads((root / "manifest.json").read_text())["radar"] == "24GHz"
    pixels = gait.spectrogram(1, 1, "Bag_free", size=64).colour()
    assert np.array_equal(np.asarray(Image.open(root / "user_01" / "0001.png")), pixels)
    files = {p: p.read_bytes() for p in root.rglob("*.png")}
    victim = root / "user_00" / "0002.png"
    victim.unlink()
    kept = root / "user_00" / "0001.png"
    before = kept.stat().st_mtime_ns
    simulate_users(root, **options)
    assert {p: p.read_bytes() for p in root.rglob("*.png")} == files and kept.stat().st_mtime_ns == before
    assert not list(root.rglob("*.part"))
    with pytest.raises(ValueError, match="was simulated with seed=0, not 1: take another folder"):
        simulate_users(root, **options | {"seed": 1})


def test_wrong_folders_get_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        MicroDopplerFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="found no folder"):
        MicroDopplerFolder(tmp_path)
    make_folder(tmp_path / "mixed", ["user_00", "ID_1"])
    with pytest.raises(ValueError, match="mixes names of users: id, user"):
        MicroDopplerFolder(tmp_path / "mixed")
    make_folder(tmp_path / "twice", ["ID_1", "ID_01"])
    with pytest.raises(ValueError, match="are the same user"):
        MicroDopplerFolder(tmp_path / "twice")
    make_folder(tmp_path / "names", ["alice", "user_1"])
    with pytest.raises(ValueError, match="found 'alice'"):
        MicroDopplerFolder(tmp_path / "names")
    make_folder(tmp_path / "zero", ["ID_0", "ID_1"])
    with pytest.raises(ValueError, match="count from 1, but there is a 0"):
        MicroDopplerFolder(tmp_path / "zero")
    (tmp_path / "empty" / "user_00").mkdir(parents=True)
    with pytest.raises(ValueError, match="user_00 holds no images"):
        MicroDopplerFolder(tmp_path / "empty")
    make_folder(tmp_path / "broken", ["user_00"])
    (tmp_path / "broken" / "user_00" / "0.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ValueError, match="0.png cannot be read as an image"):
        MicroDopplerFolder(tmp_path / "broken")[0]


def test_command(tmp_path, capsys):
    import argparse

    from radiodiff_diffusers.commands import gait as command

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = [str(tmp_path / "x"), "--users", "1", "--images", "8", "--conditions", "all", "--size", "32", "--gray"]
    assert command.run(parser.parse_args(arguments)) == 0
    assert "1 users with 8 images each" in capsys.readouterr().out
    assert Image.open(tmp_path / "x" / "user_00" / "0007.png").mode == "L"
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert manifest["conditions"] == list(gait.CONDITIONS)
    with pytest.raises(ValueError, match="no walking condition 'Running'"):
        command.run(parser.parse_args([str(tmp_path / "y"), "--conditions", "Running"]))


def test_simulation_refuses_what_it_cannot_do_and_folders_of_others(tmp_path):
    for wrong, message in (
        ({"users": 0}, "users must be a whole number from 1 up; got 0"),
        ({"size": 0}, "size must be a whole number from 8 up; got 0"),
        ({"seed": -1}, "seed must be a whole number from 0 up; got -1"),
        ({"processes": 0}, "processes must be a whole number from 1 up; got 0"),
        ({"conditions": ()}, "conditions must be one or more of Normal_line"),
    ):
        with pytest.raises(ValueError, match=message):
            simulate_users(tmp_path / "no", **{"users": 1, "images_per_user": 1, "processes": 1} | wrong)
    assert not (tmp_path / "no").exists()
    real = tmp_path / "real" / "user_00" / "0007.png"  # measured spectrograms must not be mixed with simulated ones
    real.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(real)
    with pytest.raises(ValueError, match="is not empty and holds no simulated users"):
        simulate_users(tmp_path / "real", users=1, images_per_user=1, size=16, processes=1)
    root = simulate_users(tmp_path / "made", users=1, images_per_user=2, size=16, processes=1)
    image = root / "user_00" / "0001.png"
    whole = image.read_bytes()
    image.write_bytes(b"")  # as a machine that lost power may leave it
    simulate_users(root, users=1, images_per_user=2, size=16, processes=1)
    assert image.read_bytes() == whole
    (root / "manifest.json").write_text("x")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        simulate_users(root, users=1, images_per_user=2, size=16, processes=1)


@pytest.mark.slow
def test_several_processes_write_the_same_images(tmp_path):
    options = dict(users=2, images_per_user=20, size=32)
    one = simulate_users(tmp_path / "one", processes=1, **options)
    two = simulate_users(tmp_path / "two", processes=2, **options)
    names = sorted(p.relative_to(one) for p in one.rglob("*.png"))
    assert len(names) == 40
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)

"""Generated spectrograms against real ones: each score where the right answer is known."""

import json

import numpy as np
import pytest

from radiodiff_diffusers.cli import main
from radiodiff_diffusers.data.micro_doppler import simulate_users
from radiodiff_diffusers.engines.gait import spectrogram
from radiodiff_diffusers.evaluation.generated import compare_motion, diversity, evaluate_generated, motion, power


class Images(list):
    """Users told apart by the row of a bright bar, with noise; `items[i]` as data sets give them."""

    def __init__(self, users=4, each=10, noise=0.1, seed=0, name_as=lambda user: user):
        rng = np.random.default_rng(seed)
        for user in range(users):
            for _ in range(each):
                plane = rng.normal(0.2, noise, (32, 32))
                plane[4 + 6 * user : 7 + 6 * user] += 0.6
                image = 2 * np.clip(plane, 0, 1)[None].astype(np.float32) - 1
                self.append({"image": image, "label": name_as(user)})


@pytest.fixture(scope="module")
def real():
    return Images(each=15)


def test_unseen_images_of_the_same_users_score_as_the_real_ones(real):
    scores = evaluate_generated(Images(seed=1), real, epochs=8)
    assert scores["accuracy"] > 0.9 and scores["accuracy_real"] > 0.9 and scores["chance"] == 0.25
    assert scores["diversity"] == pytest.approx(1, abs=0.1)
    assert scores["copies"] < 0.3
    assert scores["nearest"] == pytest.approx(scores["nearest_real"], rel=0.1)


def test_wrong_users_copies_and_a_single_image_repeated_are_seen(real):
    swapped = evaluate_generated(Images(seed=1, name_as=lambda user: (user + 1) % 4), real, epochs=8)
    assert swapped["accuracy"] < 0.1
    copies = evaluate_generated(real, real, epochs=1)
    assert copies["copies"] == pytest.approx(0.8, abs=0.1)  # those of the 80 % that were trained on
    repeated = [real[15 * user] for user in range(4) for _ in range(5)]
    assert evaluate_generated(repeated, real, epochs=1)["diversity"] == pytest.approx(0, abs=1e-6)


def test_the_seed_decides_everything():
    made, real = Images(users=2, each=4, seed=1), Images(users=2, each=5)
    assert evaluate_generated(made, real, epochs=2, seed=3) == evaluate_generated(made, real, epochs=2, seed=3)


def test_diversity_is_within_users():
    planes = np.zeros((4, 8, 8), np.float32)
    planes[2:] = 1
    assert diversity(planes, np.array([0, 0, 1, 1])) == 0
    assert diversity(planes, np.array([0, 1, 0, 1])) > 0
    assert np.isnan(diversity(planes, np.arange(4)))


def test_motion_is_what_the_walker_did():
    off = []
    for user in range(5):
        walk = spectrogram(user, size=128)
        torso, cadence = motion(power(walk.gray()[None].astype(np.float32) / 127.5 - 1))
        off.append((torso - np.median(walk.radial_velocity), cadence - 2 / walk.walker.cycle_seconds))
    off = np.abs(off)
    assert off[:, 0].max() < 0.15 and np.median(off[:, 1]) < 0.15  # a row is 0.064 m/s, 2.4 s tell about 0.1 steps/s


def test_motion_of_another_speed_is_told():
    walks = {u: power(spectrogram(u, size=64).gray()[None].astype(np.float32) / 127.5 - 1) for u in range(3)}
    planes, labels = np.stack(list(walks.values())), np.arange(3)
    same = compare_motion(planes, labels, np.repeat(planes, 2, 0), np.repeat(labels, 2))
    assert same["velocity_off"] == 0 == same["velocity_off_real"]
    slower = np.roll(planes, 8, axis=1)  # 8 rows of 0.13 m/s
    assert compare_motion(slower, labels, np.repeat(planes, 2, 0), np.repeat(labels, 2))["velocity_off"] > 0.4


def test_colours_are_read_as_the_levels_they_stand_for():
    walk = spectrogram(0, size=32)
    colour = np.moveaxis(walk.colour(), -1, 0).astype(np.float32) / 127.5 - 1
    assert np.allclose(power(colour), walk.gray() / 255, atol=1e-6)


def test_what_cannot_be_compared_gets_one_line(real):
    with pytest.raises(ValueError, match="class 4 was generated, but the real images have none of it"):
        evaluate_generated(Images(users=5), real, epochs=1)
    with pytest.raises(ValueError, match="too few real images"):
        evaluate_generated(Images(), Images(each=2), epochs=1)
    with pytest.raises(ValueError, match="no images"):
        evaluate_generated([], real)


def test_command(tmp_path, capsys):
    options = {"users": 2, "size": 32, "processes": 1}
    real = simulate_users(tmp_path / "real", images_per_user=5, **options)
    made = simulate_users(tmp_path / "made", images_per_user=2, seed=0, conditions=("Bag_line",), **options)
    words = ["evaluate", "generated", str(made), "--real", str(real), "--size", "32", "--epochs", "1"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4
    assert main(words) == 0
    assert "accuracy" in capsys.readouterr().out
    assert main([*words[:3], "--real", str(tmp_path / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err

"""The walking-human simulator against physics: speeds, cadence, radar equation, folding, determinism, cost."""

import time

import numpy as np
import pytest

from radiodiff_diffusers.engines import gait
from radiodiff_diffusers.engines.gait import RADARS, Radar, Walker


def walk(person, cycles=4, rate=1000):
    t = np.linspace(0, cycles * person.cycle_seconds, round(cycles * person.cycle_seconds * rate) + 1)
    return t, gait.limb_positions(person, t / person.cycle_seconds)


def ridge_velocity(image, lowest=0.4, highest=2.2):
    """Velocity of the strongest return between two speeds in each column, a smooth curve."""
    rows = np.flatnonzero((image.velocities > lowest) & (image.velocities < highest))
    power = 10 ** (image.power_db[rows] / 10)
    return image.velocities[rows[power.argmax(0)]]


def test_cycle_of_an_average_walker():
    person = Walker(height=1.75, speed=1.3)
    assert person.cycle_seconds == pytest.approx(1.094, abs=1e-3)
    assert 2 * 60 / person.cycle_seconds == pytest.approx(110, abs=0.5)  # steps a minute
    assert person.speed * person.cycle_seconds / 2 == pytest.approx(0.71, abs=0.01)  # step length, metres


@pytest.mark.parametrize(
    ("limb", "slowest", "fastest"),
    [
        ("right_foot", (-1.5, -0.8), (5.2, 6.0)),
        ("right_shank", (-0.6, 0.1), (4.3, 5.0)),
        ("right_thigh", (0.3, 0.9), (2.2, 2.8)),
        ("left_forearm", (-0.4, 0.3), (2.3, 3.0)),
        ("torso", (1.0, 1.25), (1.35, 1.6)),
    ],
)
def test_speeds_of_the_limbs(limb, slowest, fastest):
    """Far ends of the limbs over the ground at 1.3 m/s: feet stop and swing at four times the body's speed."""
    person = Walker(height=1.75, speed=1.3)
    t, limbs = walk(person)
    velocity = np.gradient(limbs[limb][1][0], t) + person.speed
    assert slowest[0] < velocity.min() < slowest[1]
    assert fastest[0] < velocity.max() < fastest[1]
    assert velocity.mean() == pytest.approx(1.3, abs=0.05)


@pytest.mark.parametrize("speed", [0.3, 0.9, 1.11, 1.6, 2.4])
def test_limbs_keep_their_lengths_and_sides_alternate(speed):
    person = Walker(height=1.8, speed=speed)
    period = person.cycle_seconds
    t = np.linspace(0, period, 401)
    limbs = gait.limb_positions(person, t / period)
    assert len(limbs) == 16
    for name, fraction in (("right_thigh", 0.245), ("left_shank", 0.246), ("right_forearm", 0.152), ("torso", 0.288)):
        start, end = limbs[name]
        assert np.allclose(np.linalg.norm(end - start, axis=0), fraction * 1.8, atol=1e-9)
    right, left = limbs["right_foot"][1], limbs["left_foot"][1]
    assert np.allclose(right[:, :200][[0, 2]], left[:, 200:400][[0, 2]], atol=1e-6)  # half a cycle later
    assert (right[1] < 0).all() and (left[1] > 0).all()
    # an arm goes against the leg of its side
    assert np.corrcoef(limbs["right_forearm"][1][0], limbs["right_shank"][1][0])[0, 1] < -0.5
    # curves close
    assert all(np.allclose(end[:, 0], end[:, -1], atol=1e-9) for _, end in limbs.values())


def test_model_is_continuous_in_speed():
    """The walking model changes its formulas at two relative speeds; nothing may jump there."""
    ht = 0.491 * 1.75
    for border in (0.5, 1.3):
        slow, fast = (Walker(speed=(border + e) * ht) for e in (-1e-6, 1e-6))
        phase = np.linspace(0, 1, 100)
        a, b = gait.limb_positions(slow, phase), gait.limb_positions(fast, phase)
        assert max(np.abs(a[k][1] - b[k][1]).max() for k in a) < 1e-3


@pytest.mark.parametrize("radar", ["24GHz", "77GHz"])
@pytest.mark.parametrize("user", [2, 11])
def test_ridge_is_the_body_towards_the_radar(radar, user):
    image = gait.spectrogram(user, 3, "Normal_line", radar)
    assert np.median(ridge_velocity(image)) == pytest.approx(np.median(image.radial_velocity), rel=0.1)
    assert image.radial_velocity == pytest.approx(image.walker.speed, rel=0.1)


def test_ridge_follows_the_aspect_on_free_paths():
    """Walking past the radar the Doppler shrinks with the cosine of the aspect: column by column."""
    slow = [gait.spectrogram(5, i, "Normal_free") for i in range(12)]
    ratios = np.array([np.median(i.radial_velocity) / i.walker.speed for i in slow])
    assert ratios.min() < 0.92  # some really are oblique
    measured = np.array([np.median(ridge_velocity(i)) / i.walker.speed for i in slow])
    assert np.abs(measured - ratios).mean() < 0.08


def test_cadence_is_two_steps_a_cycle():
    for user in (1, 8, 20):
        image = gait.spectrogram(user, 0)
        fast = image.velocities > 2.5 * image.walker.speed  # only feet are that fast
        strength = (10 ** (image.power_db[fast] / 10)).sum(0)
        strength = np.log(strength) - np.log(strength).mean()
        lags = np.arange(20, 110)
        correlation = [np.dot(strength[:-k], strength[k:]) / (len(strength) - k) for k in lags]
        period = lags[int(np.argmax(correlation))] * (image.times[1] - image.times[0])
        assert period == pytest.approx(image.walker.cycle_seconds / 2, rel=0.12)


@pytest.mark.parametrize("name", list(RADARS))
def test_a_constant_speed_lands_on_its_row_and_too_fast_folds(name):
    radar = RADARS[name]
    t = np.arange(int(2.4 * radar.prf_hz) + radar.window) / radar.prf_hz
    step = (gait.VELOCITY_RANGE[1] - gait.VELOCITY_RANGE[0]) / 255
    for speed in (-1.5, 0.0, 1.25, 5.0):
        db, velocities, times = gait.short_time_spectrum(np.exp(4j * np.pi * speed * t / radar.wavelength), radar)
        assert np.abs(velocities[db.argmax(0)] - speed).max() <= step
    assert db.shape == (256, 256) and times[-1] == pytest.approx(2.4, abs=1e-3)
    assert radar.max_velocity == pytest.approx({"24GHz": 6.25, "77GHz": 6.23}[name], abs=0.01)
    beyond = radar.max_velocity * 2 - 1.0  # folds to -1 m/s
    db, velocities, _ = gait.short_time_spectrum(np.exp(4j * np.pi * beyond * t / radar.wavelength), radar)
    assert np.abs(velocities[db.argmax(0)] + 1.0).max() <= step


def test_echo_obeys_the_radar_equation():
    """Twice as far, a sixteenth of the power; walking away mirrors the Doppler."""
    radar, person = RADARS["24GHz"], Walker()
    t = np.arange(4096) / radar.prf_hz
    phase = t / person.cycle_seconds
    powers = []
    for distance in (40.0, 80.0):
        # the limbs interfere: average over some wavelengths
        tracks = [gait.body_track(t, 0.01, distance + d, 0.0, 0.0) for d in np.linspace(0, 0.1, 12)]
        powers.append(np.mean([np.abs(gait.echo(person, phase, track, radar, 1.0)) ** 2 for track in tracks]))
    assert powers[0] / powers[1] == pytest.approx(16, rel=0.1)

    def mean_velocity(heading):
        signal = gait.echo(person, phase, gait.body_track(t, 1.3, 40.0, 0.0, heading), radar, 1.0)
        power = np.abs(np.fft.fft(signal)) ** 2
        return np.sum(power * np.fft.fftfreq(4096, 1 / radar.prf_hz)) / power.sum() * radar.wavelength / 2

    assert mean_velocity(0.0) == pytest.approx(1.3, abs=0.25)
    assert mean_velocity(np.pi) == pytest.approx(-mean_velocity(0.0), abs=0.1)
    assert abs(mean_velocity(np.pi / 2)) < 0.1


def test_ellipsoid_cross_section():
    """A lying rod seen from the side and from its end, against the formula for an ellipsoid of revolution."""
    a, c, distance = 0.06, 0.2, 500.0
    for direction, expected in (([0, 2 * c, 0], np.pi * c**2), ([2 * c, 0, 0], np.pi * a**4 / c**2)):
        direction = np.array(direction)
        start = np.array([distance, 0, 0]) - direction / 2
        ends = (start + direction)[None, :, None]
        signal = gait._sum_scatterers(
            start[None, :, None] + 0.0, ends + 0.0, np.array([a]), np.ones(1), np.array([1]), 0.0125
        )
        assert np.abs(signal[0]) ** 2 * distance**4 == pytest.approx(expected, rel=1e-3)


def test_same_seed_same_image_and_users_keep_their_habits():
    first, again = gait.spectrogram(4, 2, "Bag_free"), gait.spectrogram(4, 2, "bag_FREE")
    assert np.array_equal(first.gray(), again.gray())
    changes = [(5, 2, "Bag_free"), (4, 3, "Bag_free"), (4, 2, "Bag_line")]
    assert not any(np.array_equal(first.gray(), gait.spectrogram(*c).gray()) for c in changes)
    assert not np.array_equal(first.gray(), gait.spectrogram(4, 2, "Bag_free", seed=1).gray())
    assert gait.walker(0, 4) == gait.walker(0, 4) != gait.walker(0, 5)
    heights = [gait.walker(0, user).height for user in range(31)]
    assert 1.5 <= min(heights) and max(heights) <= 1.95 and np.std(heights) > 0.04
    speeds = [gait.spectrogram(4, i).walker.speed / gait.walker(0, 4).speed for i in range(8)]
    assert 0.005 < np.std(speeds) < 0.08


def test_loads_change_the_walk():
    rng = np.random.default_rng
    person = Walker()
    plain, bag, pack, phone = (gait._this_time(person, c, rng(0)) for c in ("Normal", "Bag", "Backpack", "Bag_Phone"))
    assert bag.arm[0] == pytest.approx(plain.arm[0] / 4) and bag.arm[1] == plain.arm[1]
    assert pack.lean_deg == plain.lean_deg + 4 and pack.rcs["torso"] == 2
    assert phone.elbow_offset_deg == (0.0, 70.0) and phone.arm[1] < 0.2


def test_images_have_the_range_and_the_colours():
    image = gait.spectrogram(0, size=128)
    gray = image.gray()
    assert gray.shape == (128, 128) and gray.dtype == np.uint8 and gray.max() == 255
    assert image.power_db.min() >= -gait.DYNAMIC_RANGE_DB
    assert image.colour().shape == (128, 128, 3)
    assert gait.JET[0].tolist() == [0, 0, 128] and gait.JET[255].tolist() == [128, 0, 0]
    zero_row = np.abs(image.velocities).argmin()
    assert image.power_db[zero_row - 1 : zero_row + 2].mean() > -20  # standing clutter
    quiet = image.velocities > 1.2 * 6.0
    assert not quiet.any()


def test_wrong_names_get_one_line():
    with pytest.raises(ValueError, match="no radar '60GHz': give one of 24GHz, 77GHz"):
        gait.spectrogram(0, radar="60GHz")
    with pytest.raises(ValueError, match="no walking condition 'Running'"):
        gait.spectrogram(0, condition="Running")
    assert gait.spectrogram(0, radar=Radar(10e9, 1500.0, 128, 256)).gray().shape == (256, 256)


@pytest.mark.parametrize("radar", list(RADARS))
def test_cost_of_an_image(radar):
    """An image, some 0.1 s, takes two to three times as long, by processor, as half a million complex exponentials and
    their FFT do in the same run (time of this thread: other programs may be running)."""
    phases = np.linspace(0, 1e4, 500_000)

    def fastest(work):
        durations = []
        for _ in range(8):
            start = time.thread_time()
            work()
            durations.append(time.thread_time() - start)
        return min(durations)

    gait.spectrogram(0, radar=radar)
    image = fastest(lambda: gait.spectrogram(1, 3, radar=radar))
    assert image < 5 * fastest(lambda: np.fft.fft(np.exp(1j * phases)))

"""Micro-Doppler spectrograms of walking people: a kinematic model of walking, seen by a continuous-wave radar.

The body moves by the global human walking model (Boulic, Thalmann and Thalmann, "A global human walking model with
real-time kinematic personification", 1990). Every limb is a few scatterers with the radar cross-section of an
ellipsoid (Chen, "The Micro-Doppler Effect in Radar"). Each user has habits of its own, kept from image to image.
Everything is decided by (seed, user, index, condition, radar).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numba
import numpy as np
from scipy.interpolate import PchipInterpolator

SPEED_OF_LIGHT = 299_792_458.0

# what is carried, and whether the path is straight to the radar or free
_LOADS = ("Normal", "Bag", "Backpack", "Bag_Phone")
CONDITIONS = tuple(f"{load}_{path}" for load in _LOADS for path in ("line", "free"))

DURATION = 2.4  # seconds of an image
VELOCITY_RANGE = (-2.0, 6.2)  # metres a second, towards the radar positive
DYNAMIC_RANGE_DB = 45.0

# lengths as fractions of the body height
_LENGTHS = {
    "head": 0.130,
    "shoulder": 0.1295,
    "torso": 0.288,
    "hip": 0.0955,
    "thigh": 0.245,
    "shank": 0.246,
    "foot": 0.143,
    "upper_arm": 0.188,
    "forearm": 0.152,
}
# radii of the ellipsoids in metres, and scatterers along each
_SEGMENTS = {
    "head": (0.10, 3),
    "torso": (0.15, 6),
    "shoulder": (0.06, 3),
    "upper_arm": (0.06, 4),
    "forearm": (0.05, 4),
    "hip": (0.07, 3),
    "thigh": (0.07, 5),
    "shank": (0.06, 5),
    "foot": (0.05, 4),
}
_SIDES = ("right", "left")
SEGMENT_NAMES = ("head", "torso") + tuple(
    f"{side}_{part}" for part in _SEGMENTS if part not in ("head", "torso") for side in _SIDES
)


@dataclass(frozen=True)
class Radar:
    """A radar that measures Doppler: carrier, pulse repetition (sampling) frequency, window of the spectrogram."""

    carrier_hz: float
    prf_hz: float
    window: int
    nfft: int

    @property
    def wavelength(self) -> float:
        return SPEED_OF_LIGHT / self.carrier_hz

    @property
    def max_velocity(self) -> float:
        """Speeds beyond it fold over (half the sampling frequency in Doppler)."""
        return self.wavelength * self.prf_hz / 4


RADARS = {
    "24GHz": Radar(24e9, 2000.0, 256, 512),
    "77GHz": Radar(77e9, 6400.0, 512, 1024),
}


@dataclass(frozen=True)
class Walker:
    """A person: size, pace, and how each joint is used, as factors on the average human's."""

    height: float = 1.75
    speed: float = 1.3
    cycle: float = 1.0
    hip: float = 1.0
    knee: float = 1.0
    ankle: float = 1.0
    elbow: float = 1.0
    arm: tuple[float, float] = (1.0, 1.0)  # right, left
    leg: tuple[float, float] = (1.0, 1.0)
    lean_deg: float = 0.0
    bob: float = 1.0
    sway: float = 1.0
    surge: float = 1.0
    pelvis: float = 1.0
    elbow_offset_deg: tuple[float, float] = (0.0, 0.0)
    lengths: dict[str, float] = field(default_factory=dict)  # factors by body part
    girth: float = 1.0
    rcs: dict[str, float] = field(default_factory=dict)  # factors by segment

    @property
    def leg_length(self) -> float:
        return 0.491 * self.height

    @property
    def relative_speed(self) -> float:
        """Speed in leg lengths a second, the one parameter of the walking model."""
        return float(np.clip(self.speed / self.leg_length, 0.05, 3.0))

    @property
    def cycle_seconds(self) -> float:
        """Duration of two steps."""
        return self.cycle * 1.346 / np.sqrt(self.relative_speed)


@dataclass
class Spectrogram:
    """Power over velocity (rows, fastest approach on top) and time (columns), with the truth it was made from."""

    power_db: np.ndarray  # (rows, columns) float32, relative to the strongest pixel, at least -DYNAMIC_RANGE_DB
    velocities: np.ndarray
    times: np.ndarray
    user: int
    condition: str
    walker: Walker
    radial_velocity: np.ndarray  # of the body, towards the radar, for each column

    def gray(self) -> np.ndarray:
        """8-bit image, 0 the floor and 255 the strongest pixel."""
        return np.round((1 + self.power_db / DYNAMIC_RANGE_DB) * 255).astype(np.uint8)

    def colour(self) -> np.ndarray:
        """8-bit RGB image in the usual jet colours."""
        return JET[self.gray()]


def _jet() -> np.ndarray:
    x = np.arange(256)[:, None] / 255
    return np.round(255 * np.clip(1.5 - np.abs(4 * x - np.array([3, 2, 1])), 0, 1)).astype(np.uint8)


JET = _jet()


@lru_cache(maxsize=1)
def jet_backwards() -> tuple[np.ndarray, np.ndarray]:
    """The jet colours backwards, for 64 levels of each of three channels: the nearest colour's level, and how far."""
    from scipy.spatial import cKDTree

    axis = np.arange(64) * 4 + 2
    colours = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    distance, level = cKDTree(JET.astype(float)).query(colours)
    return level.astype(np.uint8), distance.astype(np.float32)


def walker(seed: int, user: int) -> Walker:
    """The habits of a user, the same in every image."""
    rng = np.random.default_rng([seed, user])

    def factor(spread, low=0.3, high=1.7):
        return float(np.clip(rng.normal(1.0, spread), low, high))

    arm, arm_side, leg_side = factor(0.3), factor(0.2), factor(0.02)
    return Walker(
        height=float(np.clip(rng.normal(1.70, 0.09), 1.5, 1.95)),
        speed=float(np.clip(rng.normal(1.25, 0.13), 0.9, 1.65)),
        cycle=factor(0.05),
        hip=factor(0.06),
        knee=factor(0.07),
        ankle=factor(0.15),
        elbow=factor(0.2),
        arm=(arm, arm * arm_side),
        leg=(1.0, leg_side),
        lean_deg=float(rng.normal(1.0, 2.5)),
        bob=factor(0.15),
        sway=factor(0.3),
        surge=factor(0.2),
        pelvis=factor(0.25),
        lengths={part: factor(0.03) for part in _LENGTHS},
        girth=factor(0.12),
        rcs={name: float(np.exp(rng.normal(0.0, 0.3))) for name in SEGMENT_NAMES},
    )


def spectrogram(
    user: int,
    index: int = 0,
    condition: str = "Normal_line",
    radar: str | Radar = "24GHz",
    seed: int = 0,
    size: int = 256,
) -> Spectrogram:
    """One image of a user of the population `seed`: the `index`-th walk under a condition, seen by a radar."""
    radar = _radar(radar)
    load, path = _condition(condition).rsplit("_", 1)
    rng = np.random.default_rng([seed, user, CONDITIONS.index(f"{load}_{path}"), index, 1])
    person = _this_time(walker(seed, user), load, rng)

    # a window more than the image, half at each end
    samples = int(np.ceil(DURATION * radar.prf_hz)) + radar.window
    t = (np.arange(samples) - radar.window / 2) / radar.prf_hz
    if path == "line":
        heading, turn = rng.normal(0.0, 0.06), 0.0
    else:
        heading, turn = rng.uniform(-0.6, 0.6), rng.uniform(-0.35, 0.35)
    start, lateral, radar_height = rng.uniform(6.0, 9.0), rng.normal(0.0, 0.2), rng.uniform(0.9, 1.1)

    phase = rng.uniform() + t / person.cycle_seconds + _slow_noise(rng, t, 0.012)
    track = body_track(t, person.speed, start, lateral, heading + turn * t)
    signal = echo(person, phase, track, radar, radar_height)

    power = np.mean(np.abs(signal) ** 2)
    clutter = np.sqrt(power * 10 ** (rng.uniform(-6, 2) / 10)) * np.exp(2j * np.pi * rng.uniform())
    noise = rng.standard_normal((2, samples)) * np.sqrt(power * 10 ** (-rng.uniform(8, 18) / 10) / 2)
    db, velocities, times = short_time_spectrum(signal + clutter + noise[0] + 1j * noise[1], radar, size)

    position, _, _ = track
    distance = np.linalg.norm(position[:2], axis=0)
    radial = np.interp(times, t, -np.gradient(distance, t))
    name = f"{load}_{path}"
    return Spectrogram(db.astype(np.float32), velocities, times, user, name, person, radial)


def body_track(t, speed, start, lateral, heading):
    """Where the body is and which way it faces: position, forward and left vectors, each (3, samples).

    The radar stands at the origin and looks along x; heading 0 is straight towards it, from `start` metres at t = 0.
    """
    heading = np.broadcast_to(heading, t.shape)
    zeros = np.zeros_like(t)
    forward = np.stack([-np.cos(heading), np.sin(heading), zeros])
    step = np.diff(t, prepend=t[0])
    middle = (forward + np.roll(forward, 1, axis=1)) / 2
    path = np.cumsum(middle * speed * step, axis=1)
    path -= path[:, [np.argmin(np.abs(t))]]
    position = path + np.array([[start], [lateral], [0.0]])
    left = np.stack([-forward[1], forward[0], zeros])
    return position, forward, left


def echo(person: Walker, phase, track, radar: Radar, radar_height: float) -> np.ndarray:
    """The complex signal of the whole body, without noise and clutter."""
    position, forward, left = track
    starts, ends, radii, weights, counts = [], [], [], [], []
    for name, (start, end) in limb_positions(person, phase).items():
        part = name.split("_", 1)[-1] if name.startswith(_SIDES) else name
        for corner, out in ((start, starts), (end, ends)):
            world = position + corner[0] * forward + corner[1] * left
            world[2] = corner[2] - radar_height
            out.append(world)
        radius, count = _SEGMENTS[part]
        radii.append(radius * person.girth)
        counts.append(count)
        weights.append(np.sqrt(person.rcs.get(name, 1.0)))
    return _sum_scatterers(
        np.stack(starts), np.stack(ends), np.array(radii), np.array(weights), np.array(counts), radar.wavelength
    )


@numba.njit(cache=True)
def _sum_scatterers(starts, ends, radii, weights, counts, wavelength):
    segments, _, samples = starts.shape
    signal = np.zeros(samples, dtype=np.complex128)
    k = 4 * np.pi / wavelength
    for s in range(segments):
        a2, count = radii[s] ** 2, counts[s]
        for i in range(samples):
            x0, y0, z0 = starts[s, 0, i], starts[s, 1, i], starts[s, 2, i]
            dx, dy, dz = ends[s, 0, i] - x0, ends[s, 1, i] - y0, ends[s, 2, i] - z0
            mx, my, mz = x0 + dx / 2, y0 + dy / 2, z0 + dz / 2
            length2 = dx * dx + dy * dy + dz * dz
            along = dx * mx + dy * my + dz * mz
            cos2 = along * along / (length2 * (mx * mx + my * my + mz * mz))
            c2 = length2 / 4
            # cross-section of an ellipsoid of revolution seen at an angle to its axis, and its root
            amplitude = weights[s] / count * np.sqrt(np.pi * c2) * a2 / (a2 * (1 - cos2) + c2 * cos2)
            for p in range(count):
                f = (p + 0.5) / count
                x, y, z = x0 + f * dx, y0 + f * dy, z0 + f * dz
                range2 = x * x + y * y + z * z
                angle = k * np.sqrt(range2)
                signal[i] += amplitude / range2 * complex(np.cos(angle), -np.sin(angle))
    return signal


def short_time_spectrum(signal, radar: Radar, size: int = 256):
    """Spectrogram in dB below its maximum, (size, size), with its velocities (downwards) and times.

    The first and last half window of the signal lie outside the image.
    """
    last = len(signal) - radar.window
    centres = np.linspace(0, last, size)
    frames = signal[np.round(centres).astype(int)[:, None] + np.arange(radar.window)]
    spectrum = np.fft.fftshift(np.fft.fft(frames * np.hamming(radar.window), radar.nfft, axis=1), axes=1)
    power = np.abs(spectrum) ** 2
    velocity = np.fft.fftshift(np.fft.fftfreq(radar.nfft, 1 / radar.prf_hz)) * radar.wavelength / 2

    velocities = np.linspace(VELOCITY_RANGE[1], VELOCITY_RANGE[0], size)
    place = np.interp(velocities, velocity, np.arange(radar.nfft))
    below = np.clip(place.astype(int), 0, radar.nfft - 2)
    db = 10 * np.log10(power + 1e-30).T
    db = db[below] + (place - below)[:, None] * (db[below + 1] - db[below])
    return np.maximum(db - db.max(), -DYNAMIC_RANGE_DB), velocities, np.linspace(0, last / radar.prf_hz, size)


def limb_positions(person: Walker, phase: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both ends of every limb, (3, samples) each: forward, left and up of the point of the floor under the pelvis.

    `phase` counts walking cycles; the right heel strikes at whole numbers, the left one half a cycle later.
    """
    rv, ht = person.relative_speed, person.leg_length
    length = {part: f * person.height * person.lengths.get(part, 1.0) for part, f in _LENGTHS.items()}
    duty = 0.752 - 0.143 / person.cycle_seconds  # fraction of the cycle a foot stands

    # the pelvis goes up and down, left and right, forward and back
    lateral = -0.032 if rv >= 0.5 else 0.128 * rv**2 - 0.128 * rv
    surge = -0.021 if rv >= 0.5 else 0.084 * rv**2 - 0.084 * rv
    pelvis = np.stack(
        [
            person.surge * surge * ht * _sin(2 * phase + 2 * (0.625 - duty)),
            person.sway * lateral * ht * _sin(phase - 0.1),
            length["thigh"] + length["shank"] + person.bob * 0.015 * rv * ht * (_sin(2 * phase - 0.35) - 1),
        ]
    )
    flexion = 2.0 if rv >= 0.5 else -8 * rv**2 + 8 * rv
    lean = np.radians(person.lean_deg - flexion + flexion * _sin(2 * phase - 0.1))
    spine = np.stack([np.sin(lean), np.zeros_like(lean), np.cos(lean)])
    neck = pelvis + length["torso"] * spine
    limbs = {"torso": (pelvis, neck), "head": (neck, neck + length["head"] * spine)}

    pelvis_turn = np.radians(person.pelvis * -4 * rv * _sin(phase + 0.25))
    thorax = ((0.1, 1.333 * rv), (0.4, -1.5 * rv), (0.6, -1.333 * rv), (0.9, 1.5 * rv))
    thorax_turn = np.radians(_curve(thorax, phase))
    for side, name in enumerate(_SIDES):
        sign = 1.0 - 2.0 * side  # right is on the negative side of "left"
        limbs |= _leg(name, side, sign, person, phase + side / 2, pelvis, pelvis_turn, duty, length)
        limbs |= _arm(name, side, sign, person, phase + side / 2, neck, thorax_turn, length)
    return {name: limbs[name] for name in SEGMENT_NAMES}


def _leg(name, side, sign, person, phase, pelvis, turn, duty, length):
    curves = _joint_curves(person.relative_speed, duty)
    hip_angle = np.radians(person.hip * person.leg[side] * _curve(curves["hip"], phase))
    knee_angle = np.radians(person.knee * person.leg[side] * _curve(curves["knee"], phase))
    ankle_angle = np.radians(person.ankle * _curve(curves["ankle"], phase))
    hip = pelvis + sign * length["hip"] * np.stack([-np.sin(turn), -np.cos(turn), np.zeros_like(turn)])
    knee = hip + length["thigh"] * _down(hip_angle)
    shank_angle = hip_angle - knee_angle
    ankle = knee + length["shank"] * _down(shank_angle)
    foot_angle = shank_angle + ankle_angle
    toe = ankle + length["foot"] * np.stack([np.cos(foot_angle), np.zeros_like(turn), np.sin(foot_angle)])
    joints = {"hip": (pelvis, hip), "thigh": (hip, knee), "shank": (knee, ankle), "foot": (ankle, toe)}
    return {f"{name}_{part}": ends for part, ends in joints.items()}


def _arm(name, side, sign, person, phase, neck, turn, length):
    swing = 9.88 * person.relative_speed
    shoulder_angle = np.radians(3 - person.arm[side] * swing * (0.5 + _sin(phase + 0.25)))
    curves = _joint_curves(person.relative_speed, 0.6)
    bend = person.elbow * _curve(curves["elbow"], phase) + person.elbow_offset_deg[side]
    shoulder = neck + sign * length["shoulder"] * np.stack([-np.sin(turn), -np.cos(turn), np.zeros_like(turn)])
    elbow = shoulder + length["upper_arm"] * _down(shoulder_angle)
    hand = elbow + length["forearm"] * _down(shoulder_angle + np.radians(bend))
    joints = {"shoulder": (neck, shoulder), "upper_arm": (shoulder, elbow), "forearm": (elbow, hand)}
    return {f"{name}_{part}": ends for part, ends in joints.items()}


def _joint_curves(rv: float, duty: float) -> dict[str, tuple]:
    """Control points (phase, degrees) of the walking model for a relative speed."""
    if rv < 0.5:
        return {
            "hip": ((-0.1, 50 * rv), (0.5, -30 * rv), (0.9, 50 * rv)),
            "knee": ((0.17, 3), (0.4, 3), (0.75, 140 * rv), (1, 3)),
            "ankle": ((0, -3), (0.08, -30 * rv - 3), (0.5, 22 * rv - 3), (duty, -34 * rv - 3), (0.85, -3)),
            "elbow": ((0.05, 6 * rv + 3), (0.5, 34 * rv + 3), (0.9, 10 * rv + 3)),
        }
    if rv <= 1.3:
        w = (rv - 0.5) / 0.8
        return {
            "hip": ((-0.1, 25), (0.5, -15), (0.9, 25)),
            "knee": ((0.17, 3), (0.4, 3), (0.75, 70), (1, 3)),
            "ankle": ((0, -3), (0.08, -18), (0.5, 8), (duty, -20), (0.85, -3)),
            "elbow": ((0.05, 8 * w + 6), (0.5 + 0.01 * w, 24 * w + 20), (0.9, 9 * w + 8)),
        }
    u = (rv - 1.3) / 1.7
    return {
        "hip": ((0.2 * u - 0.1, 5 * u + 25), (0.5, -15), (0.9, 6 * u + 25)),
        "knee": ((0.17 - 0.05 * u, 3 + 22 * u), (0.4, 3), (0.75 - 0.05 * u, 70 - 5 * u), (1 - 0.03 * u, 3 + 3 * u)),
        "ankle": (
            (0, -3 + 5 * u),
            (0.08, -18 + 4 * u),
            (0.5 - 0.1 * u, 8 - 3 * u),
            (duty, -20 - 8 * u),
            (0.85, -3 + 5 * u),
        ),
        "elbow": ((0.05, 14 - 6 * u), (0.51 + 0.04 * u, 44 + 26 * u), (0.9 - 0.1 * u, 17 - 6 * u)),
    }


def _curve(points, phase):
    """Monotone periodic interpolation through control points."""
    once = sorted((p % 1.0, value) for p, value in points)
    once = [q for i, q in enumerate(once) if i == 0 or q[0] - once[i - 1][0] > 1e-6]
    x, y = np.array(once).T
    x, y = np.concatenate([x - 1, x, x + 1]), np.tile(y, 3)
    return PchipInterpolator(x, y)(phase % 1.0)


def _sin(cycles):
    return np.sin(2 * np.pi * cycles)


def _down(angle):
    """Unit vector of a hanging limb swung forward by an angle."""
    return np.stack([np.sin(angle), np.zeros_like(angle), -np.cos(angle)])


def _slow_noise(rng, t, spread):
    """Smooth random drift with a standard deviation of `spread`: four sinusoids below 1 Hz."""
    frequency, shift = rng.uniform(0.1, 0.9, (4, 1)), rng.uniform(0, 1, (4, 1))
    return spread / np.sqrt(2) * _sin(frequency * t + shift).sum(0)


def _this_time(person: Walker, load: str, rng) -> Walker:
    """The person on one walk: nobody walks twice alike, and a load changes how the body is held."""
    arm = np.array(person.arm) * rng.normal(1.0, 0.05, 2)
    lean, elbow_offset = person.lean_deg + rng.normal(0.0, 0.5), [0.0, 0.0]
    rcs = dict(person.rcs)
    if load == "Backpack":
        rcs["torso"] = rcs.get("torso", 1.0) * 2
        arm *= 0.8
        lean += 4.0
    if load in ("Bag", "Bag_Phone"):
        arm[0] *= 0.25
    if load == "Bag_Phone":
        arm[1] *= 0.15
        elbow_offset[1] = 70.0
    changes = {
        "speed": person.speed * rng.normal(1.0, 0.035),
        "cycle": person.cycle * rng.normal(1.0, 0.01),
        "hip": person.hip * rng.normal(1.0, 0.02),
        "knee": person.knee * rng.normal(1.0, 0.02),
        "ankle": person.ankle * rng.normal(1.0, 0.04),
        "elbow": person.elbow * rng.normal(1.0, 0.04),
        "arm": (float(arm[0]), float(arm[1])),
        "lean_deg": lean,
        "elbow_offset_deg": tuple(elbow_offset),
        "rcs": rcs,
    }
    return Walker(**{**person.__dict__, **changes})


def _radar(radar: str | Radar) -> Radar:
    if isinstance(radar, Radar):
        return radar
    if radar not in RADARS:
        raise ValueError(f"no radar {radar!r}: give one of {', '.join(RADARS)}, or a Radar")
    return RADARS[radar]


def _condition(condition: str) -> str:
    for known in CONDITIONS:
        if known.lower() == condition.lower():
            return known
    raise ValueError(f"no walking condition {condition!r}: give one of {', '.join(CONDITIONS)}")

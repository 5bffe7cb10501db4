"""ConstSDEScheduler against the original's recorded trajectories, and against cases where the truth is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from radiodiff_diffusers.schedulers import ConstSDEScheduler

GOLDENS = Path(__file__).parent / "goldens"
SHAPE = (2, 3, 8, 8)


def draw(seed, *shape):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def toy_network(x, t):
    """The network the recorded trajectories were made with."""
    t = torch.as_tensor(t, dtype=torch.float32).reshape(-1, 1, 1, 1)
    return torch.cat([-0.7 * x + 0.2 * torch.sin(3 * x) * t, 0.5 * x + 0.3 * torch.cos(2 * x) * t.sqrt()], dim=1)


def sample(scheduler, model, start, generator=None, draws=None):
    x, history = start, [start]
    for k, t in enumerate(scheduler.timesteps):
        noise = None if draws is None else draws(k)
        x = scheduler.step(model(x, t), t, x, generator=generator, variance_noise=noise).prev_sample
        history.append(x)
    return history


@pytest.fixture(scope="module")
def goldens():
    return load_file(GOLDENS / "sampler.safetensors")


@pytest.mark.parametrize("final_denoise", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 5, 10, 50])
def test_trajectory_is_the_originals(goldens, steps, final_denoise):
    scheduler = ConstSDEScheduler(final_denoise=final_denoise)
    scheduler.set_timesteps(steps)
    case = f"n{steps}.denoise{int(final_denoise)}"
    assert torch.equal(scheduler.timesteps, goldens[f"{case}.timesteps"])
    history = sample(scheduler, toy_network, draw(1001, *SHAPE), draws=lambda k: draw(1002 + k, *SHAPE))
    expected = goldens[f"{case}.samples"]
    for ours, theirs in zip(history[-len(expected) :], expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("l1", [0, 1])
@pytest.mark.parametrize("weighted", [0, 1])
def test_training_loss_is_the_originals(goldens, weighted, l1):
    scheduler = ConstSDEScheduler()
    x0, noise = draw(401, 4, 3, 8, 8), draw(402, 4, 3, 8, 8)
    t = torch.tensor([1e-4, 0.25, 0.6, 1.0])
    noisy = scheduler.add_noise(x0, noise, t)
    torch.testing.assert_close(noisy, goldens["loss.x_noisy"], atol=1e-6, rtol=0)
    predictions = toy_network(noisy, t).chunk(2, dim=1)
    weights = scheduler.loss_weights(t) if weighted else (1.0, 1.0)
    loss = 0.0
    for weight, prediction, target in zip(weights, predictions, scheduler.get_targets(x0, noise), strict=True):
        error = prediction - target
        loss = loss + weight * error.square().mean((1, 2, 3))
        if l1:
            loss = loss + weight * error.abs().mean((1, 2, 3))
    loss = (loss / 2 if l1 else loss).mean()
    torch.testing.assert_close(loss.reshape(1), goldens[f"loss.w{weighted}.l1{l1}"].reshape(1), atol=1e-5, rtol=1e-6)


MEAN, VARIANCE = 0.6, 0.09


def optimal_predictor(x, t):
    """Drift and noise expected given x_t, when the data are normal: linear regression on x_t."""
    t = float(t)
    gain = (1 - t) * VARIANCE / ((1 - t) ** 2 * VARIANCE + t)
    x0 = MEAN + gain * (x - (1 - t) * MEAN)
    return torch.cat([-x0, (x - (1 - t) * x0) / t**0.5], dim=1)


@pytest.mark.parametrize("solver", ["sde", "ode"])
def test_gaussian_data_come_back_with_their_mean_and_variance(solver):
    errors = []
    for steps in (10, 100, 2000):
        scheduler = ConstSDEScheduler(solver=solver)
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(4, 1, 100, 100, generator=generator)
        result = sample(scheduler, optimal_predictor, start, generator=generator)[-1]
        assert abs(float(result.mean()) - MEAN) < 6e-3
        errors.append(abs(float(result.var()) / VARIANCE - 1))
    assert errors[2] < 0.03
    assert errors[0] > errors[1] > errors[2]


def test_ode_needs_no_noise_and_is_the_forward_process_of_the_predictions():
    scheduler = ConstSDEScheduler(solver="ode")
    scheduler.set_timesteps(4)
    x, t = draw(1, *SHAPE), scheduler.timesteps[1]
    model_output = toy_network(x, t)
    out = scheduler.step(model_output, t, x, variance_noise=torch.full(SHAPE, torch.nan))
    drift, noise = model_output.chunk(2, dim=1)
    x0, t_next = x - drift * t - t.sqrt() * noise, scheduler.timesteps[2]
    torch.testing.assert_close(out.pred_original_sample, x0)
    torch.testing.assert_close(out.prev_sample, (1 - t_next) * x0 + t_next.sqrt() * noise)
    first, second = (sample(scheduler, toy_network, x)[-1] for _ in range(2))
    assert torch.equal(first, second)


def test_clip_sample_bounds_the_predicted_clean_sample():
    x = 5 * draw(2, *SHAPE)
    largest, moved = [], []
    for clip in (True, False):
        scheduler = ConstSDEScheduler(clip_sample=clip)
        scheduler.set_timesteps(3)
        t = scheduler.timesteps[1]
        out = scheduler.step(toy_network(x, t), t, x, variance_noise=torch.zeros(SHAPE))
        largest.append(out.pred_original_sample.abs().max())
        moved.append(out.prev_sample)
    assert largest[0] == 1 < largest[1]
    assert not torch.allclose(*moved)


def test_step_computes_in_float32_and_keeps_the_samples_dtype():
    scheduler = ConstSDEScheduler()
    scheduler.set_timesteps(5)
    t, x = scheduler.timesteps[-1], draw(3, *SHAPE)
    half = scheduler.step(toy_network(x, t).bfloat16(), t, x.bfloat16()).prev_sample
    assert half.dtype == torch.bfloat16
    mixed = scheduler.step(toy_network(x, t).bfloat16(), t, x).prev_sample
    assert mixed.dtype == torch.float32
    exact = scheduler.step(toy_network(x, t).bfloat16().float(), t, x).prev_sample
    torch.testing.assert_close(mixed, exact)


def test_one_generator_a_sample_gives_the_same_whatever_the_batch():
    scheduler = ConstSDEScheduler()
    scheduler.set_timesteps(3)
    x = draw(4, *SHAPE)
    together = sample(scheduler, toy_network, x, [torch.Generator().manual_seed(k) for k in (7, 8)])[-1]
    alone = sample(scheduler, toy_network, x[1:], [torch.Generator().manual_seed(8)])[-1]
    torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=0)
    assert not torch.allclose(
        together[:1], sample(scheduler, toy_network, x[:1], torch.Generator().manual_seed(9))[-1]
    )


def test_config_round_trip(tmp_path):
    ConstSDEScheduler(solver="ode", final_denoise=False, eps=1e-3).save_pretrained(tmp_path)
    loaded = ConstSDEScheduler.from_pretrained(tmp_path)
    assert (loaded.config.solver, loaded.config.final_denoise, loaded.config.eps) == ("ode", False, 1e-3)
    assert len(loaded) == loaded.config.num_train_timesteps == 1000


def test_works_in_a_plain_diffusers_loop():
    scheduler = ConstSDEScheduler()
    scheduler.set_timesteps(2, device="cpu")
    x = draw(5, *SHAPE) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t)
        (x, *_) = scheduler.step(toy_network(model_input, t), t, x, return_dict=False)
    assert torch.isfinite(x).all()
    assert scheduler.order == 1 and scheduler.step_index == len(scheduler.timesteps) == 3


def test_custom_times_are_kept_and_the_last_step_adds_no_noise():
    for solver in ("sde", "ode"):
        scheduler = ConstSDEScheduler(solver=solver)
        scheduler.set_timesteps(timesteps=[0.9, 0.3, 0.01])
        assert scheduler.timesteps.tolist() == pytest.approx([0.9, 0.3, 0.01])
        x, t = draw(6, *SHAPE), scheduler.timesteps[-1]
        out = scheduler.step(toy_network(x, t), t, x, variance_noise=torch.full(SHAPE, torch.nan))
        assert torch.isfinite(out.prev_sample).all()
    torch.testing.assert_close(out.prev_sample, out.pred_original_sample)  # the noise-free solver ends on it exactly


def test_sample_timesteps_covers_the_range_and_obeys_its_generator():
    scheduler = ConstSDEScheduler()
    t = scheduler.sample_timesteps(20_000, torch.Generator().manual_seed(0))
    assert t.min() >= scheduler.config.eps and t.max() <= 1
    assert abs(float(t.mean()) - 0.5) < 0.01
    assert torch.equal(t, scheduler.sample_timesteps(20_000, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "action, message",
    [
        (lambda: ConstSDEScheduler(solver="euler"), "choose one of sde, ode"),
        (lambda: ConstSDEScheduler(prediction_type="epsilon"), "pred_KC"),
        (lambda: ConstSDEScheduler(eps=0), "eps is 0"),
        (lambda: ConstSDEScheduler().set_timesteps(0), "at least 1"),
        (lambda: ConstSDEScheduler().set_timesteps(2.5), "whole number"),
        (lambda: ConstSDEScheduler().set_timesteps(20_000), "below 1/eps"),
        (lambda: ConstSDEScheduler().set_timesteps(), "either num_inference_steps or timesteps"),
        (lambda: ConstSDEScheduler().set_timesteps(timesteps=[0.1, 0.5]), "descending"),
        (lambda: ConstSDEScheduler().set_timesteps(timesteps=[2.0]), "in \\(0, 1\\]"),
        (lambda: ConstSDEScheduler().step(torch.zeros(1, 2, 4, 4), 1.0, torch.zeros(1, 1, 4, 4)), "set_timesteps"),
        (lambda: _step(torch.zeros(1, 3, 4, 4), 1.0), "6"),
        (lambda: _step(torch.zeros(1, 6, 4, 4), 0.33), "not in the schedule"),
    ],
)
def test_wrong_use_is_answered_in_one_line(action, message):
    with pytest.raises(ValueError, match=message) as error:
        action()
    assert "\n" not in str(error.value)


def _step(model_output, t):
    scheduler = ConstSDEScheduler()
    scheduler.set_timesteps(2)
    return scheduler.step(model_output, t, torch.zeros(1, 3, 4, 4))

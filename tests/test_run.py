"""The run's loop: accumulation, clipping, averages, samples in order, and what it says before it starts."""

import pytest
import torch
from accelerate.utils import LoggerType
from torch import nn
from toy_recipe import ToyConfig, make_run, toy_model, toy_pairs
from toy_runs import config_for, events, fresh_accelerator, go  # noqa: F401

from radiodiff_diffusers.training.config import EMAConfig, TrainConfig
from radiodiff_diffusers.training.data import Samples, generators, noise_like, training_batches
from radiodiff_diffusers.training.ema import ModelEMA
from radiodiff_diffusers.training.preflight import check_train_config, validation_interval


def test_accumulation_accumulates(tmp_path):
    """2 x 4 accumulated and 8 x 1 take the same steps (without batch norm and dropout, which look at the batch)."""

    def finals(batch_size, accumulated):
        config = config_for(tmp_path / f"{batch_size}", batch_size=batch_size, gradient_accumulation_steps=accumulated)
        config.train.max_steps = 6
        torch.manual_seed(5)
        model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 3, padding=1))
        run, code = go(config, model=model)
        return run

    many, one = finals(2, 4), finals(8, 1)
    assert many.samples_seen == one.samples_seen == 48
    for a, b in zip(many.models["model"].parameters(), one.models["model"].parameters(), strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_are_clipped_before_the_step(tmp_path):
    model = nn.Conv2d(2, 1, 1)
    start = [p.detach().clone() for p in model.parameters()]
    config = config_for(tmp_path, max_steps=1, max_grad_norm=0.1, learning_rate=0.05)
    go(config, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.05))
    moved = torch.cat([(p.detach() - s).flatten() for p, s in zip(model.parameters(), start, strict=False)]).norm()
    assert float(moved) == pytest.approx(0.1 * 0.05, rel=1e-3)
    assert events(tmp_path)[0]["grad_norm/model"] > 0.1


def test_two_optimisers_each_train_their_own(tmp_path):
    """The generator's loss goes through the discriminator and must leave it alone."""
    from radiodiff_diffusers.training.run import Run, make_accelerator

    config = config_for(tmp_path, max_steps=3, max_grad_norm=None)
    accelerator = make_accelerator(config.train)
    generator, discriminator = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
    initial = [p.detach().clone() for p in discriminator.parameters()]
    optimizers = {
        "generator": torch.optim.SGD(generator.parameters(), lr=1e-4),
        "discriminator": torch.optim.SGD(discriminator.parameters(), lr=2e-4),
    }
    run = Run(
        "gan", config, accelerator, models={"generator": generator, "discriminator": discriminator},
        optimizers=optimizers, samples=Samples(toy_pairs(), config.data),
    )  # fmt: skip
    seen = []

    def step(batch):
        fake = generator(batch["image"])
        losses = {"generator": -discriminator(fake).mean()}
        if run.step == 2:  # the second phase
            losses["discriminator"] = discriminator(fake.detach()).mean() - discriminator(batch["image"]).mean()
            seen.append([p.detach().clone() for p in discriminator.parameters()])
        return losses, {}

    assert run.train(step) == 0
    assert all(
        torch.equal(a, b) for a, b in zip(seen[0], initial, strict=False)
    )  # untouched by the generator's two steps
    assert any(not torch.equal(a, b) for a, b in zip(discriminator.parameters(), initial, strict=False))
    assert optimizers["discriminator"].param_groups[0]["lr"] == pytest.approx(2e-4)


def test_averages_follow_the_formula_and_batch_norm_too():
    model = toy_model()
    average = ModelEMA(model, EMAConfig(decay=0.5, start=2, interval=2, warmup=True))
    for step in range(1, 8):
        with torch.no_grad():
            for value in [*model.parameters(), model[1].running_mean]:
                value.fill_(float(step))
        average.update(step)
    # until step 2 a copy; then at step 4 decay min(.5, 1 - 2^(-2/3)) = .37004, at step 6 .5
    first = 1 - 2 ** (-2 / 3)
    at_4 = 4 + first * (2 - 4)
    expected = 6 + 0.5 * (at_4 - 6)
    tensors = average.tensors()
    assert float(tensors["0.weight"].mean()) == pytest.approx(expected, rel=1e-5)
    assert float(tensors["1.running_mean"].mean()) == pytest.approx(expected, rel=1e-5)
    with average.swapped_in():
        assert float(model[1].running_mean.mean()) == pytest.approx(expected, rel=1e-5)
    assert float(model[1].running_mean.mean()) == 7.0 and float(model[0].weight.detach().mean()) == 7.0


def test_samples_depend_on_their_number_alone():
    config = ToyConfig()
    samples = Samples(toy_pairs(), config.data, seed=4)
    whole = training_batches(samples, batch_size=4)
    halves = [training_batches(samples, batch_size=2, rank=r, processes=2) for r in range(2)]
    later = training_batches(samples, batch_size=4, start=8)
    batches = [next(whole) for _ in range(4)]
    for batch in batches[:2]:
        parts = [next(h) for h in halves]
        assert parts[0]["index"] + parts[1]["index"] == batch["index"]
        assert torch.equal(torch.cat([p["image"] for p in parts]), batch["image"])
        noise = [noise_like(p["image"], p, "noise") for p in parts]
        assert torch.equal(torch.cat(noise), noise_like(batch["image"], batch, "noise"))
    assert next(later)["index"] == batches[2]["index"]
    assert sorted(i for b in batches[:3] for i in b["index"]) == list(range(12))  # an epoch holds each once
    first, second = (g.initial_seed() for g in generators(batches[0], "a")[:2])
    assert first != second != generators(batches[0], "b")[1].initial_seed()


def test_workers_change_nothing():
    config = ToyConfig()
    alone = training_batches(Samples(toy_pairs(), config.data), 4)
    config.data.workers = 2
    helped = training_batches(Samples(toy_pairs(), config.data), 4)
    for _ in range(3):
        a, b = next(alone), next(helped)
        assert a["index"] == b["index"] and torch.equal(a["image"], b["image"])


def test_streams_go_on_where_they_were():
    config = ToyConfig()
    config.data.streaming = True

    class Stream:
        def __iter__(self):
            return iter(toy_pairs())

    batches = training_batches(Samples(Stream(), config.data), 4)
    first = [next(batches) for _ in range(5)]
    later = training_batches(Samples(Stream(), config.data), 4, start=8)
    assert torch.equal(next(later)["image"], first[2]["image"])
    assert first[4]["number"] == [16, 17, 18, 19] and first[4]["name"][0] == "map_4"  # into the second epoch
    second = training_batches(Samples(Stream(), config.data), 2, rank=1, processes=2)
    assert torch.equal(next(second)["image"], first[0]["image"][2:])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mixed_precision": "fp16"}, "fp16 but there is no GPU"),
        ({"mixed_precision": "fp8"}, "choose no, bf16 or fp16"),
        ({"lr_warmup_steps": 50, "max_steps": 40}, "never be reached"),
        ({"adam_betas": [0.9]}, "two numbers"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_contradictions_stop_before_the_start(change, message):
    with pytest.raises(ValueError, match=message):
        check_train_config(TrainConfig(**change), torch.device("cpu"))


def test_a_tracker_that_is_not_installed_is_not_left_out_silently(tmp_path, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(ValueError, match="train.trackers: wandb is not installed: pip install wandb, or --trackers"):
        make_run(config_for(tmp_path, trackers=["tensorboard", "wandb"]))
    make_run(config_for(tmp_path, trackers=["tensorboard"]))


def test_validation_follows_the_data_and_comes_after_the_last_step(tmp_path, capsys):
    config = config_for(tmp_path, max_steps=11, batch_size=3)
    config.validation.steps = "1.5 epochs"  # of 12 maps: 6 steps
    run, step = make_run(config)
    run.train(step, validate=lambda at: {"nmse": 1.0 / at, "protocol": "raw"})
    assert [e["step"] for e in events(tmp_path, "validation")] == [6, 11]
    assert "every 6 steps, and after the last" in capsys.readouterr().err
    assert validation_interval("5 epochs", 3720, 2) == 9300 and validation_interval("1 epoch", 3, 8) == 1
    assert validation_interval(7, None, 8) == 7 and validation_interval(0, 100, 1) == 0
    for wrong, images in (("five epochs", 9), ("0 epochs", 9), (-1, 9), ("2 epochs", None)):
        with pytest.raises(ValueError, match="validation.steps is .*number of steps"):
            validation_interval(wrong, images, 1)


def test_the_run_says_what_it_will_do(tmp_path, capsys):
    go(config_for(tmp_path, max_steps=2, mixed_precision="bf16", batch_size=3, gradient_accumulation_steps=2))
    text = capsys.readouterr().err
    for part in (
        "precision asked bf16, had bf16",
        "= 6",
        "12 samples, 2 steps an epoch",
        "241 parameters trained",
        "GB",
    ):
        assert part in text


def test_sizes_that_do_not_stack_say_so(tmp_path):
    pairs = toy_pairs(6) + toy_pairs(6, size=20)
    with pytest.raises(ValueError, match="maps of 16 x 16 and 20 x 20 pixels do not fit in one batch"):
        go(config_for(tmp_path), pairs=pairs)

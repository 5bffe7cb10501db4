"""The guard: what is not finite is named, left out and counted; the run rolls back, and gives up in the end."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from toy_recipe import make_run, toy_model, toy_pairs
from toy_runs import config_for, curve, events, fresh_accelerator, go  # noqa: F401

from radiodiff_diffusers.scene import RadioMap
from radiodiff_diffusers.training import guard


def test_a_file_of_nan_is_named_and_skipped(tmp_path):
    pairs = toy_pairs()
    pairs[3] = (pairs[3][0], RadioMap(np.full((16, 16), np.nan)))
    run, code = go(config_for(tmp_path), pairs=pairs)
    assert code == guard.EXIT_FINISHED_WITH_INCIDENTS
    bad = events(tmp_path, "guard")
    assert bad and all(e["kind"] == "bad_batch" and e["files"] == ["map_3"] for e in bad)
    assert run.guard.counts.bad_batches == len(bad) >= 3 and run.guard.counts.files == ["map_3"]
    assert events(tmp_path, "end")[-1]["bad_batches"] == len(bad)
    assert len(curve(tmp_path)) == 20 and all(np.isfinite(v) for v in curve(tmp_path).values())


def test_a_file_that_cannot_be_read_is_named_and_skipped(tmp_path):
    class Broken(list):
        def __getitem__(self, index):
            if index == 5:
                raise ValueError("gain/5_0.png is damaged: truncated")
            return super().__getitem__(index)

        def files(self, index):
            return f"gain/{index}_0.png"

    run, code = go(config_for(tmp_path), pairs=Broken(toy_pairs()))
    assert code == guard.EXIT_FINISHED_WITH_INCIDENTS
    assert "gain/5_0.png is damaged: truncated" in events(tmp_path, "guard")[0]["detail"]
    assert len(curve(tmp_path)) == 20


def test_an_infinite_loss_is_not_stepped_on(tmp_path):
    def wrap(step):
        calls = iter(range(1000))

        def spoiled(batch):
            losses, named = step(batch)
            if next(calls) in (4, 9):
                losses = {k: v * float("inf") for k, v in losses.items()}
            return losses, named

        return spoiled

    run, code = go(config_for(tmp_path), wrap_step=wrap)
    assert code == guard.EXIT_FINISHED_WITH_INCIDENTS and run.guard.counts.bad_steps == 2
    assert not guard.bad_weights(run.models)
    assert [e["kind"] for e in events(tmp_path, "guard")] == ["bad_step", "bad_step"]
    assert "the loss is inf" in events(tmp_path, "guard")[0]["detail"]


def test_infinite_gradients_are_not_stepped_on(tmp_path):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * float("nan")

    def wrap(step):
        calls = iter(range(1000))

        def spoiled(batch):
            losses, named = step(batch)
            return ({k: Poison.apply(v) for k, v in losses.items()} if next(calls) == 6 else losses), named

        return spoiled

    run, code = go(config_for(tmp_path), wrap_step=wrap)
    assert code == guard.EXIT_FINISHED_WITH_INCIDENTS and run.guard.counts.bad_steps == 1
    assert "gradient's norm is not finite" in events(tmp_path, "guard")[0]["detail"]
    assert not guard.bad_weights(run.models)


def test_overflow_in_half_precision(tmp_path):
    """Activations beyond 65504 in real float16: the step is not taken, as it would end in NaN weights."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.gain = toy_model(), 1.0

        def forward(self, x):
            return (self.model(x).half() * self.gain).float() / self.gain

    model = Half()

    def wrap(step):
        calls = iter(range(1000))

        def stepping(batch):
            model.gain = 1e6 if next(calls) == 3 else 1.0  # 1e6 is no float16
            return step(batch)

        return stepping

    run, code = go(config_for(tmp_path), model=model, wrap_step=wrap)
    assert code == guard.EXIT_FINISHED_WITH_INCIDENTS and run.guard.counts.bad_steps == 1
    assert not guard.bad_weights(run.models) and len(curve(tmp_path)) == 20


def test_the_fp16_scaler_finds_its_scale_without_alarm(tmp_path):
    """torch's own gradient scaler (here on the CPU): overflows lower the scale and are counted apart."""
    config = config_for(tmp_path)
    run, step = make_run(config)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, growth_interval=1000)

    def half_step(batch):
        losses, named = step(batch)
        loss = losses["model"]
        # the gradient passes through float16, as under autocast
        loss.register_hook(lambda g: g.half().float())
        return losses, named

    try:
        code = run.train(half_step)
    finally:
        run.accelerator.scaler = None
    assert code == 0 and run.guard.counts.overflows >= 40 and run.guard.counts.incidents == 0
    assert len(curve(tmp_path)) == 20 and not guard.bad_weights(run.models)


def always_after(step_number):
    """From this call on every loss is infinite."""

    def wrap(step):
        calls = iter(range(10**6))

        def spoiled(batch):
            losses, named = step(batch)
            if next(calls) >= step_number:
                losses = {k: v * float("inf") for k, v in losses.items()}
            return losses, named

        return spoiled

    return wrap


def test_rollbacks_then_a_stop_with_a_report(tmp_path):
    run, code = go(config_for(tmp_path), wrap_step=always_after(7))
    assert code == guard.EXIT_STOPPED_BY_GUARD
    kinds = [e["kind"] for e in events(tmp_path, "guard")]
    assert kinds == ["bad_step"] * 3 + ["rollback"] + ["bad_step"] * 3 + ["rollback"] + ["bad_step"] * 3 + ["stop"]
    report = json.loads((tmp_path / "guard_report.json").read_text())
    assert report["rollbacks"] == 3 and report["bad_steps"] == 9 and "given up" in report["reason"]
    assert events(tmp_path, "end")[-1]["status"] == "failed"
    assert run.lr_scale == 0.25 and run.step == 5


def test_a_rollback_passes_what_did_the_harm(tmp_path):
    """Four bad losses in a row once: back to step 5, half the rate, other data, and on to the end."""

    def wrap(step):
        calls = iter(range(1000))

        def spoiled(batch):
            losses, named = step(batch)
            return ({k: v * float("nan") for k, v in losses.items()} if next(calls) in (7, 8, 9) else losses), named

        return spoiled

    run, code = go(config_for(tmp_path), wrap_step=wrap)
    assert code == guard.EXIT_FINISHED_WITH_INCIDENTS and run.guard.counts.rollbacks == 1
    last = events(tmp_path)[-1]
    assert last["step"] == 20 and last["lr"] == pytest.approx(0.5e-4)
    assert run.samples_seen == 2 * (20 + 2 + 3)  # two steps done twice, three bad batches: never the same data again


def test_broken_weights_roll_back(tmp_path):
    config = config_for(tmp_path)
    config.guard.weight_check_steps = 1

    def wrap(step):
        calls = iter(range(1000))

        def spoiling(batch):
            result = step(batch)
            if next(calls) == 6:
                with torch.no_grad():
                    run.models["model"][0].bias[0] = float("inf")
                return {k: v.detach().requires_grad_() for k, v in result[0].items()}, result[1]
            return result

        return spoiling

    run, step = make_run(config, wrap_step=wrap)
    assert run.train(step) == guard.EXIT_FINISHED_WITH_INCIDENTS
    (event,) = [e for e in events(tmp_path, "guard") if e["kind"] == "rollback"]
    assert "weights are not finite: model.0.bias" in event["detail"] and event["step"] == 5
    assert not guard.bad_weights(run.models)

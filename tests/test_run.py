"""The run: it resumes bit for bit, guards itself, and cannot be lost."""

import json
import logging
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_recipe
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from toy_recipe import ToyConfig, make_run, toy_model, toy_pairs

from radiodiff_diffusers.scene import RadioMap
from radiodiff_diffusers.training import checkpoints, guard
from radiodiff_diffusers.training.config import EMAConfig, TrainConfig
from radiodiff_diffusers.training.data import Samples, generators, noise_like, training_batches
from radiodiff_diffusers.training.ema import ModelEMA
from radiodiff_diffusers.training.preflight import check_train_config

# real processes that can be killed, forked from one that has imported all that takes long
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["radiodiff_diffusers.training.run"])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state()  # it is one for the process, and refuses another precision
    yield
    torch.set_num_threads(before)


def config_for(folder, **train):
    config = ToyConfig()
    config.train.output_dir = str(folder)
    for name, value in train.items():
        setattr(config.train, name, value)
    return config


def go(config, **arguments):
    run, step = make_run(config, **arguments)
    return run, run.train(step)


def events(folder, event="train"):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == event]


def curve(folder):
    return {e["step"]: e["loss"] for e in events(folder)}


def weights(run):
    average = run.averages["model"]
    return {**{k: v.clone() for k, v in run.models["model"].state_dict().items()}, **average.tensors()}


def interrupt(at, error=KeyboardInterrupt):
    """A training step that fails at one call, as a crash would."""

    def wrap(step):
        calls = iter(range(10**6))

        def failing(batch):
            if next(calls) == at:
                raise error
            return step(batch)

        return failing

    return wrap


# Resuming
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unbroken")
    run, code = go(config_for(folder))
    assert code == 0
    return curve(folder), weights(run)


@pytest.mark.parametrize("crash", [2, 8, 13])
def test_resume_is_bit_for_bit(tmp_path, unbroken, crash):
    """Dropout, batch norm, augmentation, noise, AdamW, averages: all as if nothing had happened."""
    with pytest.raises(KeyboardInterrupt):
        go(config_for(tmp_path), wrap_step=interrupt(crash))
    torch.manual_seed(999)  # another process would not have this one's random state
    np.random.seed(999)
    run, code = go(config_for(tmp_path, resume="latest"))
    assert code == 0
    whole_curve, whole_weights = unbroken
    assert curve(tmp_path) == whole_curve  # equal, not close
    for name, value in weights(run).items():
        assert torch.equal(value, whole_weights[name]), name
    (resumed,) = events(tmp_path, "resume")
    assert resumed["step"] == crash // 5 * 5
    assert [e["step"] for e in events(tmp_path)] == list(range(1, 21))


def test_a_killed_process_resumes_bit_for_bit(tmp_path, unbroken):
    """The real thing: kill -9 at a moment nobody chose, another process goes on."""
    process = start_toy(tmp_path / "killed", seconds=0.05)
    wait_until(lambda: (tmp_path / "killed/metrics.jsonl").exists() and len(events(tmp_path / "killed")) > 6, process)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert run_toy(tmp_path / "killed", "--resume", "latest") == 0
    assert curve(tmp_path / "killed") == unbroken[0]


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path):
    """Twenty times kill -9 at random moments of one run, while it trains and while it writes checkpoints."""
    steps = ["--max_steps", "120", "--checkpoint_steps", "2"]
    assert run_toy(tmp_path / "whole", *steps) == 0
    rng, folder, reached = random.Random(0), tmp_path / "killed", []
    while len(reached) < 20:
        before = begun(folder)
        process = start_toy(folder, *steps, "--resume", "latest", seconds=0.01)
        wait_until(lambda n=before: begun(folder) > n, process)
        goal = last_step(folder) + rng.randrange(8)  # checkpoints fall on every second step
        wait_until(lambda n=goal: last_step(folder) >= n, process)
        time.sleep(rng.uniform(0.0, 0.05))
        assert process.is_alive()
        process.kill()
        process.join()
        latest = checkpoints.choose_checkpoint(folder / "checkpoints", "latest")
        assert latest is not None and checkpoints.find_problem(latest) is None
        reached.append(int(latest.name[5:]))
    assert reached == sorted(reached) and reached[-1] > 20 and len(set(reached)) > 8
    assert run_toy(folder, *steps, "--resume", "latest") == 0
    assert curve(folder) == curve(tmp_path / "whole")


def begun(folder):
    """How often the run has begun."""
    return len(lines_of(folder, "start")) + len(lines_of(folder, "resume"))


def last_step(folder):
    return max((e["step"] for e in lines_of(folder, "train")), default=0)


def lines_of(folder, event):
    try:
        return events(folder, event)
    except (OSError, ValueError):  # not there yet, or a line is being written
        return []


def start_toy(folder, *arguments, seconds=0.0):
    process = PROCESSES.Process(target=toy_recipe.main, args=(["--output_dir", str(folder), *arguments], seconds))
    process.start()
    return process


def run_toy(folder, *arguments):
    process = start_toy(folder, *arguments)
    process.join(timeout=300)
    return process.exitcode


def wait_until(condition, process, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert process.is_alive(), f"ended with {process.exitcode}"
        assert time.monotonic() < end, "took too long"
        time.sleep(0.01)


def test_resume_at_a_step_or_folder(tmp_path, unbroken):
    config = config_for(tmp_path, keep_checkpoints=9)
    go(config)
    _, code = go(config_for(tmp_path, resume="10", keep_checkpoints=9))
    assert code == 0 and events(tmp_path, "resume")[0]["step"] == 10 and curve(tmp_path) == unbroken[0]
    folder = str(tmp_path / "checkpoints/step_00000005")
    _, code = go(config_for(tmp_path, resume=folder, keep_checkpoints=9))
    assert code == 0 and curve(tmp_path) == unbroken[0]
    with pytest.raises(ValueError, match="no checkpoint of step 7 in .*; there are: 0, 5, 10, 15, 20"):
        go(config_for(tmp_path, resume="7"))


def test_a_finished_run_can_be_made_longer(tmp_path, unbroken):
    go(config_for(tmp_path, max_steps=10))
    go(config_for(tmp_path, resume="latest"))
    assert curve(tmp_path) == unbroken[0]


@pytest.mark.parametrize("harm", ["cut", "flip", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, unbroken, harm, caplog):
    go(config_for(tmp_path))
    path = tmp_path / "checkpoints/step_00000020/models.safetensors"
    data = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    else:
        data[-3] ^= 1
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    with caplog.at_level(logging.WARNING):
        go(config_for(tmp_path, resume="latest"))
    assert "step_00000020 is damaged: models.safetensors" in caplog.text
    assert events(tmp_path, "resume")[0]["step"] == 15 and curve(tmp_path) == unbroken[0]
    with pytest.raises(ValueError, match="is damaged"):
        path.write_bytes(b"")
        go(config_for(tmp_path, resume="20"))


def test_a_new_run_does_not_trample_on_an_old_one(tmp_path):
    go(config_for(tmp_path, max_steps=2))
    with pytest.raises(ValueError, match="already holds a run .*--resume latest"):
        go(config_for(tmp_path))


def test_a_changed_configuration_is_noticed(tmp_path, caplog):
    go(config_for(tmp_path, max_steps=5))
    changed = config_for(tmp_path, resume="latest", batch_size=4)
    with pytest.raises(ValueError, match="train.batch_size was 2 and is 4; .*--allow_config_change"):
        go(changed)
    changed.train.allow_config_change = True
    _, code = go(changed)
    assert code == 0


def test_which_checkpoints_are_kept(tmp_path):
    config = config_for(tmp_path, max_steps=40, keep_checkpoints=2, milestone_every=3)
    config.validation.steps = 10
    run, step = make_run(config)
    scores = {10: 0.5, 20: 0.1, 30: 0.4, 40: 0.3}
    assert run.train(step, validate=lambda at: {"nmse": scores[at], "protocol": "raw"}) == 0
    kept = [int(p.name[5:]) for p in checkpoints.list_checkpoints(tmp_path / "checkpoints")]
    assert kept == [15, 20, 30, 35, 40]  # milestones 15 and 30, the best 20, the last two
    assert [e["nmse"] for e in events(tmp_path, "validation")] == [0.5, 0.1, 0.4, 0.3]


def test_validation_changes_nothing(tmp_path, unbroken):
    config = config_for(tmp_path)
    config.validation.steps = 3
    run, step = make_run(config)

    def validate(at):
        assert not run.models["model"].training
        torch.rand(7), run.models["model"](torch.rand(1, 2, 16, 16))
        return {"nmse": 1.0 / at, "protocol": "raw"}

    run.train(step, validate)
    assert curve(tmp_path) == unbroken[0] and run.models["model"].training


# Disk and signals
# -------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_the_last_good_checkpoint_kept(tmp_path, monkeypatch, capsys):
    """From step 10 on the disk takes 100 bytes more and then nothing."""
    save_file = sys.modules["radiodiff_diffusers.training.run"].save_file

    def full(tensors, path):
        if "step_00000005" in str(path) or "step_00000000" in str(path):
            return save_file(tensors, path)
        Path(path).write_bytes(b"x" * 100)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("radiodiff_diffusers.training.run.save_file", full)
    _, code = go(config_for(tmp_path))
    assert code == guard.EXIT_NOT_SAVED
    assert "the disk is full" in capsys.readouterr().err
    kept = checkpoints.list_checkpoints(tmp_path / "checkpoints")
    assert [p.name for p in kept] == ["step_00000000", "step_00000005"]
    assert all(checkpoints.find_problem(p) is None for p in kept)
    assert not list((tmp_path / "checkpoints").glob(".writing*"))
    assert len(curve(tmp_path)) == 20  # training went on
    failed = [e for e in events(tmp_path, "checkpoint") if e["path"] is None]
    assert [e["step"] for e in failed][:3] == [10, 15, 20]


@pytest.mark.skipif(not hasattr(os, "statvfs") or os.geteuid() != 0, reason="needs root to mount a small disk")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount here")
    try:
        (disk / "ballast").write_bytes(b"x" * 60_000)
        _, code = go(config_for(disk, keep_checkpoints=50, checkpoint_steps=2))
        assert code == guard.EXIT_NOT_SAVED
        latest = checkpoints.choose_checkpoint(disk / "checkpoints", "latest")
        assert latest is not None and checkpoints.find_problem(latest) is None
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save_and_leave(tmp_path, unbroken, number, code):
    def wrap(step):
        calls = iter(range(100))

        def stepping(batch):
            if next(calls) == 7:
                os.kill(os.getpid(), number)
            return step(batch)

        return stepping

    handler = signal.getsignal(number)
    assert go(config_for(tmp_path), wrap_step=wrap)[1] == code
    assert signal.getsignal(number) is handler
    assert events(tmp_path, "end")[-1]["status"] == "stopped"
    assert checkpoints.choose_checkpoint(tmp_path / "checkpoints", "latest").name == "step_00000008"
    assert go(config_for(tmp_path, resume="latest"))[1] == 0
    assert curve(tmp_path) == unbroken[0]


# The guard
# --------------------------------------------------------------------------------------------------------------


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


# The loop
# ---------------------------------------------------------------------------------------------------------------


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


def run_together(count, folder, *arguments, **options):
    """As `accelerate launch --cpu --num_processes count` starts them, over gloo; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    processes = []
    for rank in range(count):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
        given = {"environment": environment, **options}
        argv = ["--output_dir", str(folder), *arguments]
        processes.append(PROCESSES.Process(target=toy_recipe.main, args=(argv,), kwargs=given))
        processes[-1].start()
    for process in processes:
        process.join(timeout=400)
    return [p.exitcode for p in processes]


def test_two_processes_do_what_one_does(tmp_path):
    """The same global batch, nothing that looks at its own share of it: losses to 1e-4, and weights."""
    calm = ["--batch_norm_eval", "true", "--max_steps", "6", "--validation.steps", "0"]
    assert run_together(1, tmp_path / "one", "--batch_size", "4", *calm, dropout=0.0) == [0]
    assert run_together(2, tmp_path / "two", "--batch_size", "2", *calm, dropout=0.0) == [0, 0]
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert list(one) == list(two) == [1, 2, 3, 4, 5, 6]
    assert np.allclose(list(one.values()), list(two.values()), rtol=1e-4)
    ends = [load_file(tmp_path / f"{n}/checkpoints/step_00000006/models.safetensors") for n in ("one", "two")]
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-5)


def test_two_processes_skip_a_bad_file_together_and_resume(tmp_path):
    """One sees the bad file, both leave the batch out; nobody waits for ever. Then they resume to the same curve."""
    steps = ["--max_steps", "10", "--checkpoint_steps", "5"]
    incidents = [guard.EXIT_FINISHED_WITH_INCIDENTS] * 2
    assert run_together(2, tmp_path / "run", *steps, bad_sample=3) == incidents
    bad = events(tmp_path / "run", "guard")
    assert bad and all(e["files"] == ["map_3"] for e in bad)
    whole = curve(tmp_path / "run")
    assert run_together(2, tmp_path / "run", *steps, "--resume", "5", bad_sample=3) == incidents
    assert curve(tmp_path / "run") == whole and len(whole) == 10


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

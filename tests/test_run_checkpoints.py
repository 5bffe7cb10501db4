"""A run resumes bit for bit and cannot be lost: kills, damaged checkpoints, full disks, signals."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toy_recipe import make_run
from toy_runs import config_for, curve, events, fresh_accelerator, go, run_toy, start_toy, wait_until  # noqa: F401

from radiodiff_diffusers.training import checkpoints, guard
from radiodiff_diffusers.training.validation import save_picture


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


def test_a_run_that_went_back_goes_on_from_there(tmp_path, caplog):
    """What it left behind is neither the latest checkpoint nor keeps the run's new ones from being kept."""
    go(config_for(tmp_path, keep_checkpoints=2, milestone_every=2))

    def kept(folder=tmp_path / "checkpoints"):
        return [int(p.name[5:]) for p in checkpoints.list_checkpoints(folder)]

    assert kept() == [10, 15, 20]
    with caplog.at_level(logging.WARNING):
        go(config_for(tmp_path, keep_checkpoints=2, milestone_every=2, resume="10", max_steps=13))
    assert kept() == [10, 13] and kept(tmp_path / "checkpoints/dropped") == [15, 20]
    assert "at step 10: step_00000015, step_00000020 moved to" in caplog.text
    go(config_for(tmp_path, resume="latest", max_steps=14))
    assert events(tmp_path, "resume")[-1]["step"] == 13
    assert checkpoints.find_problem(tmp_path / "checkpoints/dropped/step_00000020") is None


def test_a_damaged_checkpoint_does_not_take_a_sound_ones_place(tmp_path):
    go(config_for(tmp_path, keep_checkpoints=2))
    (tmp_path / "checkpoints/step_00000020/models.safetensors").write_bytes(b"")
    go(config_for(tmp_path, keep_checkpoints=1, resume="latest", max_steps=18))
    sound = [p for p in checkpoints.list_checkpoints(tmp_path / "checkpoints") if not checkpoints.find_problem(p)]
    assert [p.name for p in sound] == ["step_00000018"]


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


def test_a_disk_is_looked_at_while_it_is_full(tmp_path, monkeypatch):
    """torch.save does not say why it failed, and what it had written is removed."""

    def usage(path):
        full = list(Path(path).glob(".writing*"))
        return SimpleNamespace(free=0 if full else 10**10)

    def fill(folder):
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 13714816 vs 13714704")

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(checkpoints.CheckpointNotWritten, match="of step 3 could not be written .* the disk is full"):
        checkpoints.write_checkpoint(tmp_path, 3, fill)
    assert not list(tmp_path.iterdir())


def test_what_else_a_full_disk_does_not_take(tmp_path, monkeypatch, caplog):
    (tmp_path / "validation").write_text("a file where the pictures' folder would be")
    assert save_picture(Image.new("L", (2, 2)), tmp_path, 5) is None  # and the run goes on
    assert "step_000005.png could not be written" in caplog.text

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("radiodiff_diffusers.training.run.write_yaml", full)
    with pytest.raises(OSError, match="the disk is full: nothing more can be written to .*/run$"):
        go(config_for(tmp_path / "run"))


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

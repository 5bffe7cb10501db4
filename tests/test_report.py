"""Training reports: every log format, the diagnosis rules on runs that are wrong in a known way, and the pages."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from radiodiff_diffusers.commands import report as command
from radiodiff_diffusers.reports import diagnosis, training
from radiodiff_diffusers.reports.run_log import read_run, resume_table

NOW = 1_700_100_000.0


def records(steps=400, loss=lambda i: 1.0 / (1 + i / 50), stride=10, **extra):
    """Training records of a run that ended just before NOW; `extra`: columns as functions of the record's number."""
    for i in range(steps):
        columns = {name.replace("__", "/"): column(i) for name, column in extra.items()}
        time = NOW - 10 * (steps - i)
        yield {"event": "train", "step": (i + 1) * stride, "time": time, "loss": loss(i), "lr": 1e-4, **columns}


def write_run(folder, *groups, total=5000, **start):
    folder.mkdir(parents=True, exist_ok=True)
    first = {"event": "start", "step": 0, "config": {"training": {"max_train_steps": total}}, **start}
    lines = [json.dumps(record) for group in ([first], *groups) for record in group]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def kinds(run, word):
    return [finding.kind for finding in diagnosis.diagnose(run, NOW) if word in finding.text]


# Reading -----------------------------------------------------------------------------------------------------------


def test_a_run_is_read_by_event(tmp_path):
    validation = {"event": "validation", "step": 200, "nmse": 0.1, "psnr": 20.0, "images": "validation/a.png"}
    guard = {"event": "guard", "step": 90, "kind": "bad_batch", "detail": "NaN", "files": ["a.png"]}
    folder = write_run(tmp_path / "run", records(30), [validation, guard], recipe="ldm", disc_start=150)
    run = read_run(folder)
    assert run.name == "run" and run.total_steps == 5000 and run.recipe == "ldm" and run.gan_start == 150
    assert run.last_step == 300 and run.validation_column("psnr")[1] == [20.0] and run.guards[0]["kind"] == "bad_batch"
    steps, losses = run.column("loss")
    assert steps[0] == 10 and losses[0] == 1.0 and len(steps) == 30


def test_components_under_the_originals_names_are_known(tmp_path):
    line = {
        "event": "train",
        "step": 1,
        "loss": 1.0,
        "loss/rec_loss": 0.5,
        "loss/logits_real": 0.2,
        "loss/vf_loss": 3.0,
    }
    run = read_run(write_run(tmp_path, [line]))
    assert run.train[1] == {"loss": 1.0, "loss/reconstruction": 0.5, "loss/real": 0.2, "loss/vf_loss": 3.0}


def test_damaged_lines_are_counted_and_skipped(tmp_path):
    folder = write_run(tmp_path, records(20))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"event": "train", "st\n[1, 2]\n\xff\xfe\x00\n{"event": "train", "loss": 1}\n')
        file.write(b'{"event": "train", "step": 210, "lo')
    run = read_run(folder)
    assert len(run.train) == 20 and len(run.damaged) == 5
    assert run.damaged[0] == "metrics.jsonl, line 22: not whole JSON (half-written?)"
    assert kinds(run, "5 damaged") == ["info"]


def test_values_that_are_no_numbers_do_no_harm(tmp_path):
    odd = {"event": "train", "step": 5, "loss": 1.0, "loss/parts": [1, 2], "note": {"a": 1}, "loss/kl": "NaN"}
    run = read_run(write_run(tmp_path / "run", records(3), [odd]))
    assert run.train[5]["loss"] == 1.0 and math.isnan(run.train[5]["loss/kl"]) and "note" not in run.train[5]


def test_the_originals_vae_log(tmp_path):
    """Two lines a step, one an optimiser; progress bars on the same line; a value that is NaN; a cut line."""
    log = tmp_path / "2025-08-15-20-41_.log"
    log.write_text(
        "2025-08-15 20:41:13,123 {'model': {}}\n"
        "2025-08-15 20:41:13,123 [Train Step] 0/150000: train/total_loss: 5.50000, train/rec_loss: 0.40000, "
        "train/disc_factor: 0.00000, lr: 0.00001, \n"
        "2025-08-15 20:41:13,300 [Train Step] 0/150000: train/disc_loss: 0.00000, train/logits_real: -0.25000, "
        "lr: 0.00001, \n"
        " 0%|   | 99/150000 [00:10<1:00]\r2025-08-15 20:41:33,123 [Train Step] 100/150000: train/total_loss: nan, "
        "train/rec_loss: 1.5e-05, train/disc_factor: 1.00000, lr: 0.00001, \n"
        "2025-08-15 20:41:53,123 [Train Step] 200/15"
    )
    run = read_run(tmp_path)
    assert run.total_steps == 150000 and sorted(run.train) == [0, 100] and run.gan_start == 100
    assert run.train[0]["loss"] == 5.5 and run.train[0]["loss/real"] == -0.25 and run.train[0]["lr"] == 1e-5
    assert math.isnan(run.train[100]["loss"]) and run.train[100]["loss/reconstruction"] == 1.5e-5
    assert run.train[100]["steps_per_second"] == pytest.approx(5.0)
    assert len(run.damaged) == 1 and "cut short" in run.damaged[0]


def test_the_originals_ldm_and_lightningdit_logs(tmp_path):
    (tmp_path / "a.log").write_text(
        "2025-01-01 00:00:00,000 [Train Step] 20/50000: loss_simple: 0.50000, loss_vlb: 0.00000, "
        "total_loss: 0.75000, lr: 0.00005, \n"
    )
    (tmp_path / "b.log").write_text(
        "[\x1b[34m2024-12-29 14:56:12\x1b[0m] (step=0000100) Train Loss: 1.2133, Train Steps/Sec: 0.62\n"
    )
    assert (
        read_run(tmp_path / "a.log").train[20].items() >= {"loss": 0.75, "loss/loss_simple": 0.5, "lr": 5e-5}.items()
    )
    assert read_run(tmp_path / "b.log").train[100].items() >= {"loss": 1.2133, "steps_per_second": 0.62}.items()


def test_a_resumed_run_counts_the_later_record_and_shows_the_jump(tmp_path):
    first = list(records(40, loss=lambda i: 0.5))
    again = [{**record, "loss": 0.9} for record in records(60, loss=lambda i: 0.9)][30:]
    resume = {"event": "resume", "step": 300, "from": "checkpoints/300", "loss": 0.9}
    run = read_run(write_run(tmp_path / "told", first, [resume], again))
    assert len(run.train) == 60 and run.train[310]["loss"] == 0.9 and run.train[300]["loss"] == 0.5
    (row,) = resume_table(run)
    assert row["steps_lost"] == 100 and row["loss_before"] == 0.5 and row["loss_after"] > 0.85
    assert kinds(run, "jumped") == ["warn"]
    # A run that does not say so is found out by its steps.
    (row,) = resume_table(read_run(write_run(tmp_path / "untold", first, again)))
    assert row["loss_before"] == 0.5 and row["loss_after"] == 0.9


@pytest.mark.parametrize("content", ["", "hello\n", '{"event": "end", "status": "failed"}\n', "{"])
def test_a_log_without_steps_is_one_clear_line(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match="is it the log of a run") as failure:
        read_run(tmp_path)
    assert "\n" not in str(failure.value)


def test_no_such_run(tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds neither metrics.jsonl nor"):
        read_run(tmp_path)


# Diagnosis ---------------------------------------------------------------------------------------------------------


def test_a_healthy_run_is_called_healthy(tmp_path):
    findings = diagnosis.diagnose(read_run(write_run(tmp_path, records(400))), NOW)
    assert [f.kind for f in findings] == ["good"]
    far = diagnosis.progress(read_run(tmp_path), NOW)
    assert far["share"] == pytest.approx(0.8) and far["seconds_per_step"] == pytest.approx(1.0)
    assert far["hours_left"] == pytest.approx(1000 / 3600)


@pytest.mark.parametrize(
    ("word", "kind", "loss", "extra"),
    [
        ("NaN", "bad", lambda i: 0.5 if i < 300 else math.nan, {}),
        ("Diverging", "bad", lambda i: 1 / (1 + i / 20) if i < 200 else 0.1 + (i - 200) * 0.01, {}),
        ("Stalled", "warn", lambda i: 0.3 + 0.001 * (-1) ** i, {}),
        ("practically zero", "bad", None, {"lr": lambda i: 1e-4 if i < 100 else 0.0}),
        (
            "GAN collapsed: the discriminator always wins",
            "bad",
            None,
            {"loss__discriminator": lambda i: 1.0 if i < 200 else 0.001},
        ),
        (
            "GAN collapsed: the discriminator cannot tell",
            "bad",
            None,
            {"loss__discriminator": lambda i: 1.0, "loss__real": lambda i: 0.1, "loss__fake": lambda i: 0.1},
        ),
        (
            "adaptive weight",
            "warn",
            None,
            {"loss__adversarial_weight": lambda i: 5000.0, "loss__discriminator": lambda i: 1.0},
        ),
        ("slowed", "warn", None, {"samples_per_second": lambda i: 40.0 if i < 390 else 9.0}),
        ("Memory grew", "warn", None, {"memory_gb": lambda i: 2.0 + i * 0.01}),
    ],
)
def test_what_is_wrong_is_named(tmp_path, word, kind, loss, extra):
    """Each rule fires on its own trouble, with something to try, and not on the healthy run (above)."""
    options = {"loss": loss} if loss else {}
    run = read_run(write_run(tmp_path, records(400, **options, **extra), disc_start=100))
    findings = [f for f in diagnosis.diagnose(run, NOW) if word in f.text]
    assert [f.kind for f in findings] == [kind]
    assert findings[0].advice


def test_silence_and_end(tmp_path):
    run = read_run(write_run(tmp_path / "a", records(400)))
    assert [f.kind for f in diagnosis.diagnose(run, NOW + 7200) if "No news for 2 hours" in f.text] == ["warn"]
    run = read_run(write_run(tmp_path / "b", records(400), [{"event": "end", "step": 4000, "status": "failed"}]))
    assert kinds(run, "status `failed`") == ["bad"]
    run = read_run(write_run(tmp_path / "d", records(400), [{"event": "end", "step": 4000, "status": "stopped"}]))
    assert kinds(run, "was stopped at step 4,000") == ["warn"]
    run = read_run(write_run(tmp_path / "c", records(400), [{"event": "end", "step": 4000, "status": "finished"}]))
    assert kinds(run, "The run ended") == ["info"] and not kinds(run, "No news")


def test_validation_that_turned_names_the_best_step(tmp_path):
    nmse = [0.5, 0.2, 0.1, 0.12, 0.15, 0.2, 0.22, 0.25]
    rows = [{"event": "validation", "step": 500 * (i + 1), "nmse": value} for i, value in enumerate(nmse)]
    run = read_run(write_run(tmp_path, records(400), rows))
    (finding,) = [f for f in diagnosis.diagnose(run, NOW) if "was best at" in f.text]
    assert "step 1,500 (0.1)" in finding.text and "+120%" in finding.text
    best = next(row for row in diagnosis.best_values(run) if row["what"] == "validation nmse")
    assert (best["best_step"], best["last_step"]) == (1500, 4000)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 100])
def test_smoothing_keeps_length_and_level(count):
    values = np.full(count, 3.0)
    assert diagnosis.smooth(values) == pytest.approx(values)


# Pages -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    (folder / "validation").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(8):
        name = f"validation/step_{i:06d}.png"
        Image.fromarray(rng.integers(0, 255, (32, 96), dtype=np.uint8)).save(folder / name)
        rows.append(
            {"event": "validation", "step": 500 * (i + 1), "nmse": 1 / (i + 1), "psnr": 20.0 + i, "images": name}
        )
    (folder / "validation" / "step_000003.png").write_bytes(b"not a picture")
    guard = {
        "event": "guard",
        "step": 70,
        "kind": "rollback",
        "detail": "loss <b>above</b> 10 times",
        "files": ["x.png"],
    }
    parts = {"loss__kl": lambda i: 1000.0 + i, "loss__discriminator": lambda i: float(i > 200)}
    return write_run(folder, records(400, **parts), rows, [guard], recipe="vae_gan", disc_start=2000)


def test_the_page_stands_alone_and_is_updated_in_place(run_folder):
    markdown, page = training.write_report(run_folder)
    first = page.read_text()
    assert page == run_folder / "report" / "report.html"
    assert (
        not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', first) and "<script" not in first and "@import" not in first
    )
    # The five figures, the development and the latest picture, inside the page and beside the Markdown.
    assert first.count('src="data:image/png;base64,') == 7
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", markdown.read_text()):
        with Image.open(markdown.parent / name) as picture:
            assert min(picture.size) > 30
    assert "4,000 of 5,000 steps (80.0%)" in first and "1 validation picture missing or not readable" in first
    assert "loss &lt;b&gt;above&lt;/b&gt;" in first, "what the log says is escaped"
    files = sorted(p.name for p in page.parent.rglob("*"))
    training.write_report(run_folder)
    assert sorted(p.name for p in page.parent.rglob("*")) == files


def test_watch_follows_a_growing_log_until_it_ends(run_folder):
    pages = training.watch(run_folder, interval=0.01, rounds=50)
    assert "4,000 of 5,000" in next(pages).read_text()
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "train", "step": 4500, "loss": 0.1, "time": NOW}) + "\n")
        file.write(json.dumps({"event": "end", "step": 4500, "status": "finished"}) + "\n")
    page = next(pages).read_text()
    assert "4,500 of 5,000" in page and 'http-equiv="refresh"' in page
    assert list(pages) == []


def test_the_command_with_several_runs_and_with_a_broken_one(run_folder, tmp_path, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    other = write_run(tmp_path / "other", records(60))
    assert (
        command.run(
            parser.parse_args([str(run_folder), str(other), str(tmp_path / "none"), "-o", str(tmp_path / "out")])
        )
        == 1
    )
    printed = capsys.readouterr()
    assert len(printed.out.split()) == 2 and "no such file" in printed.err
    assert (tmp_path / "out" / "run" / "report.html").is_file() and (
        tmp_path / "out" / "other" / "report.html"
    ).is_file()
    assert (
        command.run(parser.parse_args([str(run_folder), str(other), "--overlay", "-o", str(tmp_path / "both")])) == 0
    )
    assert "2 training runs compared" in (tmp_path / "both" / "report.html").read_text()

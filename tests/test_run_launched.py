"""The recipes as a user launches them in several processes: the commands of docs/training.md, word for word."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from people_recipes import EXAMPLES, tiny_latents, tiny_people
from safetensors.torch import load_file
from test_recipes import NO_DROPOUT

from radiodiff_diffusers import ConstSDEScheduler, RadioDiffPipeline, RadioDiffUNet2DModel
from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS

CPU = ["--cpu"]
FSDP = ["--config_file", str(EXAMPLES / "accelerate/fsdp.yaml")]
MAPS = ["--data.simulate.transmitters", "1", "--train.batch_norm_eval", "true"]
# what looks at its own share of the batch is off; a global batch of four
CASES = {
    "vae_gan": ("first_radio_tiny", [*MAPS, "--adaptive_weight", "false", "--disc_start", "1"]),
    "ldm": ("pixels_small_tiny", [*MAPS, "--model.unet", json.dumps(NO_DROPOUT), "--inference_steps", "1"]),
    "lora": ("ray_traced_tiny", MAPS),
    "va_vae": (
        "micro_doppler_tiny",
        ["--size", "32", "--model.channels", "8", "--norm_groups", "4", "--multipliers", "1,1,2", "--disc_start", "1",
         "--alignment.adaptive", "false", "--loss.adaptive_weight", "false"],
    ),
    "lightningdit": ("micro_doppler_s_tiny", ["--inference_steps", "2", "--pictures", "2"]),
}  # fmt: skip


def launch(recipe, folder, processes, how, place, *more):
    config, arguments = CASES[recipe]
    command = [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *how, "--num_processes", str(processes),
        str(EXAMPLES / recipe / "train.py"), "--config", str(EXAMPLES / recipe / f"{config}.yaml"),
        "--max_steps", "3", "--log_steps", "1", "--trackers", "", "--validation.steps", "3", "--scenes", "3",
        "--lr_warmup_steps", "0", "--batch_size", str(4 // processes), "--output_dir", str(folder),
        *arguments, *place.get(recipe, []), *more,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=place["root"], env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    return result.returncode, result.stderr


def read(folder):
    """Losses, and the validation's numbers."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    (scores,) = [e for e in lines if e["event"] == "validation"]
    numbers = [v for k, v in sorted(scores.items()) if isinstance(v, float) and k != "time"]
    return [e["loss"] for e in lines if e["event"] == "train"], numbers


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the recipes run, and what they stand on."""
    root = tmp_path_factory.mktemp("launched")
    people = tiny_people(root / "people")
    tokenizer, latents = tiny_latents(root, people)
    torch.manual_seed(0)
    unet = RadioDiffUNet2DModel(
        **{**RADIODIFF_UNET_PRESETS["test"], **NO_DROPOUT, "condition_channels": ["buildings", "transmitter"]}
    )
    RadioDiffPipeline(unet, ConstSDEScheduler()).save_pretrained(root / "base")
    return {
        "root": root,
        "lora": ["--model.base", root / "base"],
        "va_vae": ["--data.source", people],
        "lightningdit": ["--model.vae", tokenizer, "--data.source", latents, "--data.images", people],
    }


@pytest.fixture(scope="module")
def alone(place):
    """The run of one process, each recipe's once."""
    done = {}

    def run(recipe):
        if recipe not in done:
            done[recipe] = place["root"] / f"alone_{recipe}"
            code, said = launch(recipe, done[recipe], 1, CPU, place)
            assert code == 0, said[-3000:]
        return done[recipe]

    return run


def weights(folder):
    """All that was published, whatever its place in the folder."""
    files = sorted((folder / "model").rglob("*.safetensors"))
    assert files
    return {f"{f.relative_to(folder)}.{k}": v for f in files for k, v in load_file(f).items()}


def assert_the_same_run(folder, other):
    one, two = read(folder), read(other)
    assert len(one[0]) == 3 and np.allclose(one[0], two[0], rtol=1e-4)
    assert np.allclose(one[1], two[1], rtol=1e-3, atol=1e-4)
    published = weights(folder), weights(other)
    assert published[0].keys() == published[1].keys()
    # all together: AdamW's first steps are as large for a gradient that is nothing but rounding as for any other
    whole = torch.cat([v.flatten() for v in published[0].values()])
    apart = torch.cat([v.flatten() for v in published[1].values()]) - whole
    assert apart.norm() < 1e-3 * whole.norm()
    assert written(folder / "model") == written(other / "model")


def written(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(CASES))
def test_two_processes_on_the_cpu(tmp_path, place, alone, recipe):
    """`accelerate launch --cpu --num_processes 2` starts two, which do what one does with the whole batch."""
    code, said = launch(recipe, tmp_path / "two", 2, CPU, place)
    assert code == 0, said[-3000:]
    assert "2 process(es) on cpu" in said and "2 x 1 accumulated x 2 process(es) = 4" in said
    assert_the_same_run(alone(recipe), tmp_path / "two")
    assert written(alone(recipe) / "checkpoints") == written(tmp_path / "two/checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ldm", "lora", "lightningdit"])
def test_fsdp(tmp_path, place, alone, recipe):
    """Blocks in parts; the exported folder is that of whole models."""
    code, said = launch(recipe, tmp_path / "parts", 2, FSDP, place)
    assert code == 0, said[-3000:]
    assert "sharding      FSDP: " in said and " units over 2 processes" in said
    assert_the_same_run(alone(recipe), tmp_path / "parts")
    config = "config.json" if recipe != "lora" else "training_config.yaml"
    for path in (tmp_path / "parts/model").rglob(config):
        assert "FSDP" not in path.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["ldm", "lightningdit"])
def test_fsdp_recomputes_accumulates_and_resumes(tmp_path, place, alone, recipe):
    """Gradient checkpointing and accumulation, in two processes; then one process goes on with what they saved."""
    more = ["--gradient_checkpointing", "true", "--gradient_accumulation_steps", "2", "--batch_size", "1"]
    code, said = launch(recipe, tmp_path / "run", 2, FSDP, place, *more, "--checkpoint_steps", "2")
    assert code == 0, said[-3000:]
    assert_the_same_run(alone(recipe), tmp_path / "run")
    one = ["--resume", "2", "--allow_config_change", "true"]
    code, said = launch(recipe, tmp_path / "run", 1, CPU, place, *one)
    assert code == 0 and "resumes       at step 2" in said, said[-3000:]
    assert_the_same_run(alone(recipe), tmp_path / "run")


@pytest.mark.slow
def test_fsdp_is_refused_where_there_are_two_optimisers(tmp_path, place):
    code, said = launch("vae_gan", tmp_path / "run", 2, FSDP, place)
    assert code != 0 and "error: FSDP is for recipes with one optimiser" in said

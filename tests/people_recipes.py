"""What the tests of the two recipes for images of people share: a tiny data set, a tokenizer, and how to call them."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL

from radiodiff_diffusers.data.latents import extract_latents
from radiodiff_diffusers.data.micro_doppler import MicroDopplerFolder, simulate_users

EXAMPLES = Path(__file__).parent.parent / "examples"
QUIET = ["--trackers", "", "--log_steps", "1", "--lr_warmup_steps", "0"]


def load(recipe, script="train"):
    name = f"examples_{recipe}_{script}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / recipe / f"{script}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def train(recipe, config, folder, *more, cwd=None):
    """Run a recipe in this process; its folder."""
    AcceleratorState._reset_state()
    before = Path.cwd()
    os.chdir(cwd or folder.parent)
    try:
        path = EXAMPLES / recipe / f"{config}.yaml"
        arguments = ["--config", str(path), *QUIET, "--output_dir", str(folder), *map(str, more)]
        assert load(recipe).main(arguments) == 0
    finally:
        os.chdir(before)
    return folder


def events(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def tiny_people(root, users=3, images=6, size=32):
    return simulate_users(root, users=users, images_per_user=images, size=size, processes=1)


def tiny_tokenizer(seed=0, channels=3, latent=4):
    torch.manual_seed(seed)
    return AutoencoderKL(
        in_channels=channels, out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=latent,
        scaling_factor=1.0, sample_size=32,
    ).eval()  # fmt: skip


def tiny_latents(root, people, seed=0):
    """A tokenizer's folder and the folder of latents it made."""
    vae = tiny_tokenizer(seed)
    vae.save_pretrained(root / "tokenizer")
    extract_latents(vae, MicroDopplerFolder(people, size=32), root / "latents", batch_size=8, shard_size=8)
    return root / "tokenizer", root / "latents"

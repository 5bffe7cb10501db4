"""Scores of tokenizers and of generated spectrograms, on cases whose answer is known."""

import io
import json

import numpy as np
import pytest
import torch
from people_recipes import tiny_people, tiny_tokenizer
from PIL import Image

from radiodiff_diffusers.commands import evaluate as command
from radiodiff_diffusers.data.micro_doppler import MicroDopplerFolder
from radiodiff_diffusers.engines import gait
from radiodiff_diffusers.evaluation import generated, tokenizer

RANGE, SECONDS = gait.VELOCITY_RANGE, gait.DURATION


pytestmark = pytest.mark.usefixtures("one_thread")


# Tokenizer ---------------------------------------------------------------------------------------------------------


def test_psnr_is_of_8_bit_images():
    image = torch.full((2, 3, 8, 8), -1.0)
    other = image.clone()
    other[0] += 10 / 127.5  # ten levels everywhere
    assert tokenizer.to_uint8(torch.tensor([-1.0, 0.0, 1.0, 9.0])).tolist() == [0, 128, 255, 255]
    values = tokenizer.psnr(image, other)
    assert values[0].item() == pytest.approx(20 * np.log10(255 / 10)) and values[1].item() == float("inf")


def test_ssim_equals_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure as reference

    draw = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=draw) * 2 - 1
    other = image + 0.3 * torch.randn(image.shape, generator=draw)  # beyond [-1, 1] here and there
    expected = reference(other.clamp(-1, 1), image, data_range=(-1.0, 1.0), reduction="none")
    assert torch.allclose(tokenizer.ssim(image, other), expected, atol=1e-5)


def test_frechet_distance_equals_the_definition():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(150, 5)) + 0.5
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert tokenizer.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    few = rng.normal(size=(6, 40))  # fewer images than features
    assert tokenizer.frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert tokenizer.frechet_distance(few, few + 2) == pytest.approx(160, rel=1e-6)
    with pytest.raises(ValueError, match="2 images or more"):
        tokenizer.frechet_distance(few[:1], few)


def test_a_tokenizers_scores_are_the_means_of_its_images(tmp_path):
    folder = MicroDopplerFolder(tiny_people(tmp_path / "p", users=2, images=3), size=32)
    vae = tiny_tokenizer()

    def mean_colour(images):
        return images.float().mean((2, 3))

    def lpips(image, reconstruction):
        return (image - reconstruction).abs().mean((1, 2, 3))

    scores = tokenizer.evaluate_tokenizer(vae, folder, batch_size=4, sample=False, lpips=lpips, fid=mean_colour)
    images = torch.stack([torch.as_tensor(folder[i]["image"]) for i in range(6)])
    with torch.no_grad():
        rebuilt = vae.decode(vae.encode(images).latent_dist.mean).sample
    assert scores["images"] == 6 and scores["left_out"] == {}
    assert scores["psnr"] == pytest.approx(tokenizer.psnr(images, rebuilt).mean().item(), rel=1e-3)
    assert scores["lpips"] == pytest.approx(lpips(images, rebuilt).mean().item(), rel=1e-4)
    features = [mean_colour(tokenizer.to_uint8(x)).numpy() for x in (images, rebuilt)]
    assert scores["rfid"] == pytest.approx(tokenizer.frechet_distance(*features), rel=1e-3)
    assert 0 <= scores["split_fid"] != scores["rfid"]
    sampled = tokenizer.evaluate_tokenizer(vae, folder, batch_size=6, lpips=None, fid=False)
    again = tokenizer.evaluate_tokenizer(vae, folder, batch_size=2, lpips=None, fid=False)
    assert sampled["psnr"] == pytest.approx(again["psnr"], abs=1e-3) and "lpips" not in sampled
    assert sampled["psnr"] != pytest.approx(scores["psnr"], abs=1e-4)  # a sample is not the mean


def test_weights_that_cannot_be_had_are_left_out_with_one_line(tmp_path, monkeypatch, capsys):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models.vgg16", no_network)
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", no_network)
    people = tiny_people(tmp_path / "p", users=2, images=2)
    tiny_tokenizer().save_pretrained(tmp_path / "vae")
    arguments = ["tokenizer", str(tmp_path / "vae"), str(people), "--size", "32"]
    assert run_command(arguments) == 0
    text = capsys.readouterr().out
    assert "lpips     left out" in text and "rfid      left out" in text and "psnr" in text
    assert run_command([*arguments, "--no-fid", "--lpips", "none", "--json", "--count", "3"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["images"] == 3 and scores["left_out"] == {}


def run_command(arguments):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


# Generated spectrograms --------------------------------------------------------------------------------------------


def test_colours_are_read_as_power():
    spectrogram = gait.spectrogram(0, size=64)
    gray = spectrogram.gray() / 255
    colour = generated.power_of(spectrogram.colour().transpose(2, 0, 1) / 127.5 - 1)
    assert np.abs(colour - gray).max() < 0.02
    one = spectrogram.gray()[None] / 127.5 - 1
    assert np.abs(generated.power_of(one) - gray).max() < 0.005
    assert np.abs(generated.power_of(np.repeat(one, 3, axis=0)) - gray).max() < 0.005


def test_the_walk_is_read_off_the_image():
    """Against the truth of the simulation: the body's velocity, and two steps a cycle."""
    ridges, cadences = [], []
    for user in range(12):
        spectrogram = gait.spectrogram(user, size=128)
        power = spectrogram.gray() / 255
        ridges.append(generated.ridge_velocity(power, RANGE) - spectrogram.radial_velocity.mean())
        cadences.append(generated.cadence(power, RANGE, SECONDS) - 2 / spectrogram.walker.cycle_seconds)
    assert np.abs(ridges).mean() < 0.05 and np.abs(cadences).mean() < 0.08
    assert np.isnan(generated.cadence(np.full((64, 64), 0.5), RANGE, SECONDS))


def save_all(folder, images):
    """(user, number) -> image in [-1, 1], written as gray pictures."""
    for (user, number), image in images.items():
        path = folder / f"user_{user:02d}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(np.clip(image, 0, 1) * 255)).save(path)
    return MicroDopplerFolder(folder, size=64, channels=1)


def striped(user, rng):
    """An image of a make-believe user: a bright line whose height is the user's, with noise."""
    power = 0.25 + 0.05 * rng.standard_normal((64, 64))
    power[8 + 12 * user + int(rng.integers(-1, 2))] += 0.6
    return power


def test_scores_of_generated_images(tmp_path):
    rng = np.random.default_rng(0)
    real = save_all(tmp_path / "real", {(u, n): striped(u, rng) for u in range(3) for n in range(15)})
    good = save_all(tmp_path / "good", {(u, n): striped(u, rng) for u in range(3) for n in range(6)})
    wrong = save_all(tmp_path / "wrong", {(u, n): striped((u + 1) % 3, rng) for u in range(3) for n in range(6)})
    scores = generated.evaluate_generated(good, real, steps=60, add_to=2)
    assert scores["chance"] == pytest.approx(1 / 3) and scores["held_out_accuracy"] > 0.9
    assert scores["accuracy"] > 0.9 and 0.9 < scores["diversity"] < 1.1 and 0.9 < scores["nearest"] < 1.1
    assert scores["ridge_error"] < 0.15 and scores["copies"] < 0.2
    assert scores["few_real"] == 2 and scores["accuracy_from_few_and_generated"] > 0.8
    text = generated.describe(scores)
    assert "taken for the right user" in text and "with the generated" in text
    scores = generated.evaluate_generated(wrong, real, steps=60)
    assert scores["accuracy"] < 0.1 and scores["ridge_error"] > 1 and "few_real" not in scores


def test_copies_and_repeated_images_are_seen(tmp_path):
    rng = np.random.default_rng(0)
    real = save_all(tmp_path / "real", {(u, n): striped(u, rng) for u in range(2) for n in range(20)})
    first, _ = real.split(0.8, 0)
    copies, one = {}, {}
    for i in range(len(first)):
        label = int(first.labels[i])
        copies[label, i] = (first[i]["image"][0] + 1) / 2
        one[label, i] = copies[min(key for key in copies if key[0] == label)]
    scores = generated.evaluate_generated(save_all(tmp_path / "copies", copies), real, steps=2)
    assert scores["copies"] == 1 and scores["nearest"] < 0.1
    scores = generated.evaluate_generated(save_all(tmp_path / "one", one), real, steps=2)
    assert scores["diversity"] < 0.01
    with pytest.raises(ValueError, match="of whom there is no real one"):
        strange = save_all(tmp_path / "strange", {(5, 0): striped(0, rng)})
        generated.evaluate_generated(strange, real)


def test_generate_writes_what_evaluate_reads(tmp_path, capsys):
    import importlib.util

    from diffusers import FlowMatchEulerDiscreteScheduler
    from people_recipes import EXAMPLES

    from radiodiff_diffusers import LightningDiTPipeline, LightningDiTTransformer2DModel

    torch.manual_seed(0)
    sizes = {"sample_size": 8, "in_channels": 4, "num_layers": 1, "num_attention_heads": 2, "num_classes": 2}
    transformer = LightningDiTTransformer2DModel(attention_head_dim=16, **sizes)
    vae = tiny_tokenizer()
    vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    LightningDiTPipeline(vae, transformer, FlowMatchEulerDiscreteScheduler()).save_pretrained(tmp_path / "pipe")
    spec = importlib.util.spec_from_file_location("generate", EXAMPLES / "lightningdit/generate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    arguments = [str(tmp_path / "pipe"), str(tmp_path / "made"), "--count", "3", "--steps", "2", "--device", "cpu"]
    assert script.main([*arguments, "--batch-size", "4"]) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "made").rglob("*.png")}
    assert len(before) == 6
    gone = sorted(before)[4]
    gone.unlink()
    assert script.main(arguments) == 0
    was = np.int16(Image.open(io.BytesIO(before[gone])))
    assert np.abs(np.int16(Image.open(gone)) - was).max() <= 1  # the noise is the image's own, whatever its batch
    people = tiny_people(tmp_path / "people", users=2, images=5)
    assert run_command(["generated", str(tmp_path / "made"), "--real", str(people), "--size", "32",
                        "--steps", "5", "--json"]) == 0  # fmt: skip
    printed = capsys.readouterr()
    scores = json.loads(printed.out)
    assert scores["images"] == 6 and 0 <= scores["accuracy"] <= 1
    assert "reading made" in printed.err and "training a classifier" in printed.err  # it takes a minute
    assert run_command(["generated", str(tmp_path / "made"), "--real", str(people), "--size", "32",
                        "--steps", "5", "--quiet"]) == 0  # fmt: skip
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="images of 8 pixels show no walk: give 16 or more"):
        run_command(["generated", str(tmp_path / "made"), "--real", str(people), "--size", "8"])

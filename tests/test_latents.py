"""Latent shards: their content, exact statistics, resuming, several processes, and all that must be refused."""

import argparse
import json
import logging

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from radiodiff_diffusers.commands import latents as command
from radiodiff_diffusers.convert.vavae import load_tokenizer, set_latent_statistics
from radiodiff_diffusers.data.latents import LatentDataset, extract_latents, tokenizer_fingerprint
from radiodiff_diffusers.data.micro_doppler import MicroDopplerFolder


def tiny_vae(seed=0, channels=3):
    torch.manual_seed(seed)
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=1.0,
    ).eval()


def make_data(root, users=("user_00", "user_02"), count=5):
    rng = np.random.default_rng(0)
    for user in users:
        (root / user).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / user / f"{i}.png")
    return MicroDopplerFolder(root, size=16)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    root = tmp_path_factory.mktemp("latents")
    data, vae = make_data(root / "data"), tiny_vae()
    folder = extract_latents(vae, data, root / "latents", batch_size=3, shard_size=4)
    return folder, data, vae


def copy_of(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_shards_hold_what_the_original_reads(extracted):
    folder, data, vae = extracted
    shards = sorted(folder.glob("*.safetensors"))
    assert [s.name for s in shards] == [f"latents_rank00_shard{k:03d}.safetensors" for k in range(3)]
    first = load_file(shards[0])
    assert set(first) == {"latents", "labels", "mean", "std"}
    assert first["latents"].shape == (4, 4, 8, 8) and first["latents"].dtype == torch.float32
    assert first["labels"].dtype == torch.int64
    labels = torch.cat([load_file(s)["labels"] for s in shards])
    assert labels.tolist() == [0] * 5 + [2] * 5  # a missing user leaves its number free
    with torch.no_grad():
        posterior = vae.encode(torch.from_numpy(data[1]["image"])[None]).latent_dist
    assert (first["mean"][1] - posterior.mean[0]).abs().max() < 1e-5
    assert (first["std"][1] - posterior.std[0]).abs().max() < 1e-5
    noise = (first["latents"] - first["mean"]) / first["std"]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_statistics_are_those_of_all_latents(extracted):
    folder, _, _ = extracted
    latents = torch.cat([load_file(s)["latents"] for s in sorted(folder.glob("*.safetensors"))]).double()
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))  # unbiased
    statistics = json.loads((folder / "latents.json").read_text())["statistics"]
    assert np.allclose(statistics["mean"], mean, atol=1e-12) and np.allclose(statistics["std"], std, atol=1e-12)
    stored = torch.load(folder / "latents_stats.pt", weights_only=True)
    assert stored["mean"].shape == stored["std"].shape == (1, 4, 1, 1)
    fixed = LatentDataset(folder, sample=False)
    normalised = torch.stack([item["latents"] for item in (fixed[i] for i in range(len(fixed)))])
    assert normalised.mean((0, 2, 3)).abs().max() < 1e-5
    assert (normalised.std((0, 2, 3)) - 1).abs().max() < 1e-5
    vae = tiny_vae()
    set_latent_statistics(vae, fixed.mean, fixed.std)
    assert vae.config.latents_mean == pytest.approx(mean.tolist(), abs=1e-6)


def test_training_samples_anew_each_epoch(extracted):
    folder, data, vae = extracted
    dataset = LatentDataset(folder, tokenizer=vae, data=data, normalize=False)
    first = dataset[3]["latents"]
    assert torch.equal(first, dataset[3]["latents"]) and dataset[3]["label"] == 0 and dataset[9]["label"] == 2
    draws = []
    for epoch in range(200):
        dataset.set_epoch(epoch)
        draws.append(dataset[3]["latents"])
    draws = torch.stack(draws)
    shard = load_file(folder / "latents_rank00_shard000.safetensors")
    spread = (draws.std(0) / shard["std"][3]).mean()
    assert abs(spread - 1) < 0.02 and ((draws.mean(0) - shard["mean"][3]) / shard["std"][3]).abs().mean() < 0.1
    assert dataset.users == {0: "user_00", 2: "user_02"}


def test_memory_and_disk_give_the_same(extracted):
    folder, _, _ = extracted
    memory, disk = LatentDataset(folder, in_memory=True), LatentDataset(folder, in_memory=False)
    for i in (0, 3, 4, 9, -1):
        assert torch.equal(memory[i]["latents"], disk[i]["latents"]) and memory[i]["label"] == disk[i]["label"]
    with pytest.raises(IndexError):
        disk[10]
    loader = torch.utils.data.DataLoader(disk, batch_size=4, num_workers=2)
    batches = list(loader)
    assert batches[0]["latents"].shape == (4, 4, 8, 8) and sum(len(b["label"]) for b in batches) == 10
    assert torch.equal(batches[0]["latents"][3], memory[3]["latents"])


def test_batch_shard_and_processes_do_not_change_the_latents(extracted, tmp_path):
    folder, data, vae = extracted
    other = extract_latents(vae, data, tmp_path / "one", batch_size=7, shard_size=100)
    one = load_file(next(other.glob("*.safetensors")))
    many = [load_file(s) for s in sorted(folder.glob("*.safetensors"))]
    for name in ("latents", "labels", "mean", "std"):
        assert (one[name] - torch.cat([m[name] for m in many])).abs().max() < 1e-5
    # two processes: the one that ends last writes the manifest, in whatever order they run
    for rank in (1, 0):
        assert not (tmp_path / "two" / "latents.json").exists()
        extract_latents(vae, data, tmp_path / "two", batch_size=3, shard_size=4, rank=rank, world_size=2)
    assert (tmp_path / "two" / "latents.json").read_text() == (folder / "latents.json").read_text()


def test_goes_on_where_it_was_stopped(extracted, tmp_path, caplog):
    folder, data, vae = extracted
    again = copy_of(folder, tmp_path / "again")
    names = [f"latents_rank00_shard{k:03d}.safetensors" for k in range(3)]
    original = [(again / name).read_bytes() for name in names]
    (again / "latents.json").unlink()
    (again / names[2]).unlink()  # not made yet
    (again / names[1]).write_bytes(original[1][:-100])  # cut off
    kept = (again / names[0]).stat().st_mtime_ns
    with pytest.raises(ValueError, match=r"is not finished \(latents.json is missing\)|shard001.*cannot be read"):
        LatentDataset(again)
    with caplog.at_level(logging.WARNING):
        extract_latents(vae, data, again, batch_size=3, shard_size=4)
    assert "is damaged" in caplog.text
    assert (again / names[0]).stat().st_mtime_ns == kept
    for name, data_bytes in zip(names, original, strict=True):
        assert torch.equal(load_file(again / name)["latents"], load_file(folder / name)["latents"]), data_bytes[:0]
    assert (again / "latents.json").read_text() == (folder / "latents.json").read_text()


def test_flip_only_when_asked(extracted, tmp_path):
    folder, data, vae = extracted
    with pytest.raises(ValueError, match="no mirrored latents"):
        LatentDataset(folder, flip=True)
    flipped = extract_latents(vae, data, tmp_path / "flip", flip=True)
    shard = load_file(next(flipped.glob("*.safetensors")))
    assert set(shard) == {"latents", "labels", "mean", "std", "latents_flip", "mean_flip", "std_flip"}
    mirrored = torch.from_numpy(data[0]["image"].copy()).flip(-1)[None]
    with torch.no_grad():
        assert (vae.encode(mirrored).latent_dist.mean[0] - shard["mean_flip"][0]).abs().max() < 1e-5
    plain, mixed = LatentDataset(flipped, sample=False), LatentDataset(flipped, sample=False, flip=True)
    different = [not torch.equal(plain[i]["latents"], mixed[i]["latents"]) for i in range(10)]
    assert 0 < sum(different) < 10


def test_other_tokenizers_and_changed_images_are_refused(extracted, tmp_path):
    folder, data, vae = extracted
    with pytest.raises(ValueError, match="made with another tokenizer"):
        LatentDataset(folder, tokenizer=tiny_vae(seed=1))
    changed = make_data(tmp_path / "data")
    assert LatentDataset(folder, data=changed)  # the same images elsewhere are the same data
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "data" / "user_00" / "3.png")
    with pytest.raises(ValueError, match="images have changed"):
        LatentDataset(folder, data=MicroDopplerFolder(tmp_path / "data", size=16))
    renamed = make_data(tmp_path / "other", users=("ID_1", "ID_2"))
    with pytest.raises(ValueError, match="class 0 is ID_1 in the data and user_00 in"):
        LatentDataset(folder, data=renamed)
    with pytest.raises(ValueError, match="class 1 is user_01 in the data and nobody in"):
        LatentDataset(folder, data=make_data(tmp_path / "more", users=("user_00", "user_01", "user_02")))
    with pytest.raises(ValueError, match="has the class 2, but there are 2 classes"):
        LatentDataset(folder, num_classes=2)
    with pytest.raises(ValueError, match="is of another tokenizer"):
        extract_latents(tiny_vae(seed=1), data, folder, shard_size=4)
    with pytest.raises(ValueError, match="is of other images"):
        extract_latents(vae, renamed, folder, shard_size=4)
    with pytest.raises(ValueError, match="another seed, shard size or precision"):
        extract_latents(vae, data, folder, shard_size=4, seed=5)
    with pytest.raises(ValueError, match="images are 3 x 15 x 15: .* 3 channels and multiples of 2"):
        extract_latents(vae, MicroDopplerFolder(data.root, size=15), tmp_path / "x")
    with pytest.raises(ValueError, match="images are 1 x 16 x 16: the tokenizer expects 3 channels"):
        extract_latents(vae, MicroDopplerFolder(data.root, size=16, channels=1), tmp_path / "x")
    with pytest.raises(ValueError, match="leave the augmentation out"):
        extract_latents(vae, MicroDopplerFolder(data.root, size=16, augment={"time_shift": 0.1}), tmp_path / "x")


def test_a_shard_of_another_set_is_refused(extracted, tmp_path):
    folder, data, _ = extracted
    extract_latents(tiny_vae(seed=1), data, tmp_path / "other", shard_size=4)
    mixed = copy_of(folder, tmp_path / "mixed")
    shard = sorted(mixed.glob("*.safetensors"))[0]
    shard.write_bytes((tmp_path / "other" / shard.name).read_bytes())
    with pytest.raises(ValueError, match="is not of this set: its tokenizer is another"):
        LatentDataset(mixed)


def test_overwrite_replaces_only_what_is_stale(extracted, tmp_path):
    folder, data, _ = extracted
    again = copy_of(folder, tmp_path / "again")
    other = tiny_vae(seed=1)
    extract_latents(other, data, again, shard_size=5, overwrite=True)
    assert len(list(again.glob("*.safetensors"))) == 2
    assert LatentDataset(again, tokenizer=other, data=data)


def test_fingerprint_is_of_weights_not_of_statistics(extracted, tmp_path):
    _, _, vae = extracted
    same = tiny_vae()
    set_latent_statistics(same, [0.5] * 4, [2.0] * 4)
    same.save_pretrained(tmp_path / "vae")
    assert tokenizer_fingerprint(load_tokenizer(tmp_path)) == tokenizer_fingerprint(vae)
    same.decoder.conv_out.bias.data[0] += 1e-3
    assert tokenizer_fingerprint(same) != tokenizer_fingerprint(vae)


def change_manifest(folder, **changes):
    path = folder / "latents.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "latents_rank00_shard001.safetensors").write_bytes(b"short"), "shard001.* cannot be read"),
        (lambda f: (f / "latents_rank00_shard002.safetensors").unlink(), "has no latents, expected 2"),
        (lambda f: (f / "latents.json").write_text("{"), "latents.json is damaged"),
        (lambda f: change_manifest(f, statistics={}), "latents.json is damaged"),
        (lambda f: change_manifest(f, users=None), "latents.json is damaged"),
        (lambda f: (f / "latents.json").unlink(), "is not finished"),
        (
            lambda f: save_file({"labels": torch.zeros(1), "latents": torch.zeros(1, 4, 8, 8)}, f / "x.safetensors"),
            "does not belong to the other shards",
        ),
        (lambda f: [p.unlink() for p in f.glob("*.safetensors")], "holds no shards"),
    ],
)
def test_damaged_folders_get_one_line(extracted, tmp_path, damage, message):
    folder = copy_of(extracted[0], tmp_path / "copy")
    damage(folder)
    with pytest.raises(ValueError, match=message) as error:
        LatentDataset(folder)
    assert "\n" not in str(error.value)


def change_labels(shard, change):
    """Another order or other numbers in a finished shard; everything else in it stays."""
    with safe_open(shard, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(shard)
    save_file(tensors | {"labels": change(tensors["labels"])}, shard, metadata=metadata)


@pytest.mark.parametrize("change", [lambda labels: 2 - labels, lambda labels: labels.flip(0).contiguous()])
def test_changed_labels_are_refused(extracted, tmp_path, change, caplog):
    folder, data, vae = extracted
    copy = copy_of(folder, tmp_path / "copy")
    change_labels(copy / "latents_rank00_shard001.safetensors", change)
    with pytest.raises(ValueError, match="not those of the data, in its order"):
        LatentDataset(copy, data=data)
    with pytest.raises(ValueError, match="not those that were extracted .changed, or in another order") as error:
        LatentDataset(copy)  # nobody names the images: the manifest knows
    assert "\n" not in str(error.value)
    # extracting again does what the line says
    kept = (copy / "latents_rank00_shard000.safetensors").stat().st_mtime_ns
    extract_latents(vae, data, copy, batch_size=3, shard_size=4)
    assert "shard001.safetensors has labels that are not those of its images: made again" in caplog.text
    assert (copy / "latents_rank00_shard000.safetensors").stat().st_mtime_ns == kept
    assert LatentDataset(copy).labels.tolist() == LatentDataset(folder).labels.tolist()


def test_a_manifest_of_before_the_labels_were_in_it(extracted, tmp_path, caplog):
    folder, data, vae = extracted
    older = copy_of(folder, tmp_path / "older")
    manifest = json.loads((older / "latents.json").read_text())
    del manifest["labels"]
    (older / "latents.json").write_text(json.dumps(manifest | {"format": 1}))
    assert len(LatentDataset(older)) == 10
    assert "older version and does not say which labels the latents have" in caplog.text
    extract_latents(vae, data, older, batch_size=3, shard_size=4)
    assert (older / "latents.json").read_text() == (folder / "latents.json").read_text()
    caplog.clear()
    assert LatentDataset(older, data=data) and not caplog.text


def test_latents_of_the_original_are_read(tmp_path):
    latents = torch.randn(6, 4, 8, 8)
    save_file(
        {"latents": latents, "latents_flip": latents.flip(-1), "labels": torch.arange(6)},
        tmp_path / "latents_rank00_shard000.safetensors",
        metadata={"total_size": "6"},
    )
    with pytest.raises(ValueError, match="has no statistics"):
        LatentDataset(tmp_path)
    torch.save({"mean": torch.ones(1, 4, 1, 1), "std": torch.full((1, 4, 1, 1), 2.0)}, tmp_path / "latents_stats.pt")
    dataset = LatentDataset(tmp_path)
    assert torch.allclose(dataset[4]["latents"], (latents[4] - 1) / 2) and dataset[4]["label"] == 4
    with pytest.raises(ValueError, match="has no fingerprints"):
        LatentDataset(tmp_path, tokenizer=tiny_vae())


def parse(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(a) for a in arguments])


def test_command(extracted, tmp_path, capsys):
    folder, data, vae = extracted
    vae.save_pretrained(tmp_path / "vae")
    options = ("-t", tmp_path / "vae", "-o", tmp_path / "out", "--size", 16, "--shard-size", 4, "--device", "cpu")
    options += ("--bf16", "--allow-missing")
    assert command.run(parse("extract", data.root, *options)) == 0
    assert "10 latents of 4 x 8 x 8, 2 classes (0 to 2)" in capsys.readouterr().out
    assert LatentDataset(tmp_path / "out", tokenizer=vae, data=data)
    assert command.run(parse("info", tmp_path / "out", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 10
    with pytest.raises(ValueError, match="1 of 3 users have no folder"):
        command.run(parse("extract", data.root, *options[:-1]))
    with pytest.raises(ValueError, match="2 of 4 users have no folder"):
        command.run(parse("extract", data.root, *options[:-1], "--num-classes", 4))
    with pytest.raises(ValueError, match="no such file or folder"):
        command.run(parse("extract", data.root, "-t", tmp_path / "nowhere.pt", "-o", tmp_path / "x"))


@pytest.mark.slow
def test_command_with_two_processes(extracted, tmp_path):
    _, data, vae = extracted
    vae.save_pretrained(tmp_path / "vae")
    options = ("-t", tmp_path / "vae", "-o", tmp_path / "out", "--size", 16, "--shard-size", 4, "--device", "cpu")
    options += ("--bf16", "--allow-missing")
    assert command.run(parse("extract", data.root, *options, "--processes", 2)) == 0
    assert LatentDataset(tmp_path / "out", tokenizer=vae, data=data)
    vae.decoder.conv_out.bias.data += 1
    vae.save_pretrained(tmp_path / "vae")
    assert command.run(parse("extract", data.root, *options, "--processes", 2)) == 1

"""The LightningDiT recipe: flow matching as published, latents and classes checked, and a pipeline at the end."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from people_recipes import EXAMPLES, events, load, tiny_latents, tiny_people, tiny_tokenizer, train
from PIL import Image
from safetensors.torch import load_file, save_file
from test_lightning_dit import SMALL as SMALL_DIT
from test_lightning_dit import golden_case

from radiodiff_diffusers import LightningDiTPipeline, LightningDiTTransformer2DModel
from radiodiff_diffusers.convert.vavae import load_tokenizer
from radiodiff_diffusers.data.latents import extract_latents
from radiodiff_diffusers.data.micro_doppler import MicroDopplerFolder, simulate_users
from radiodiff_diffusers.training.config import parse_config
from radiodiff_diffusers.training.flow import FlowLossConfig, draw_dropped, draw_times, flow_step, velocity_errors

CONFIGS = sorted((EXAMPLES / "lightningdit").glob("*.yaml"))
FEW = ["--max_steps", "2", "--batch_size", "2", "--validation.steps", "2", "--scenes", "3", "--inference_steps", "3",
       "--checkpoint_steps", "1", "--pictures", "2"]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    people = tiny_people(root / "people")
    return root, people, *tiny_latents(root, people)


def go(place, folder, *more, config="micro_doppler_s_tiny"):
    _, people, tokenizer, latents = place
    given = ["--model.vae", tokenizer, "--data.source", latents, "--data.images", people]
    return train("lightningdit", config, folder, *given, *FEW, *more)


def read(name, *more):
    return parse_config(
        load("lightningdit").DiTConfig, ["--config", str(EXAMPLES / f"lightningdit/{name}.yaml"), *more]
    )


# Configurations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_configuration_reads_and_has_a_tiny_one(path):
    config = read(path.stem)
    assert config.train.output_dir.startswith(f"runs/{path.stem}")
    assert (config.model.vae == "none") == path.stem.startswith("lora_")  # the base has one
    sisters = {"simulated_users": "micro_doppler_s_tiny", "lora_simulated_users": "lora_users_tiny"}
    tiny = sisters.get(path.stem, f"{path.stem}_tiny")
    assert path.stem.endswith("_tiny") or path.with_name(f"{tiny}.yaml").exists()


def test_the_guides_numbers():
    config = read("micro_doppler_xl")
    assert config.model.size == "XL/1" and config.data.num_classes == 31 and config.model.qk_norm
    assert config.validation.inference_steps == 50 and config.validation.guidance_scale == 4.0
    assert config.loss.label_dropout == 0.1 and config.loss.times == "logit_normal" and config.loss.cosine_weight == 1
    assert not config.data.flip and config.train.mixed_precision == "bf16" and config.ema.decay == 0.9999
    defaults = load("lightningdit").DiTConfig()
    assert (defaults.train.learning_rate, defaults.train.adam_betas) == (2e-4, [0.9, 0.95])
    assert read("micro_doppler_s").model.size == "S/1"


def test_the_full_size_has_the_published_parameters():
    class Latents:
        manifest = {"num_classes": 31}

        def __getitem__(self, _):
            return {"latents": torch.zeros(32, 16, 16)}

    with torch.device("meta"):
        xl = load("lightningdit").make_transformer(read("micro_doppler_xl", "--qk_norm", "false"), Latents())
    # the published count includes a fixed position table of 256 x 1152
    assert sum(p.numel() for p in xl.parameters()) + 256 * 1152 == 674_140_448
    assert xl.config.num_classes == 31 and xl.config.sample_size == 16


# The objective -----------------------------------------------------------------------------------------------------


def batch_of(count, shape=(4, 4, 4), label=1):
    latents = torch.randn(count, *shape, generator=torch.Generator().manual_seed(5))
    numbers = list(range(count))
    return {"latents": latents, "label": torch.full((count,), label), "number": numbers, "seed": [0] * count}


def test_the_loss_is_velocity_mse_plus_cosine():
    seen = {}

    class Transformer:
        null_label = 9

        def __call__(self, sample, times, labels):
            seen.update(sample=sample, times=times, labels=labels)
            return type("Output", (), {"sample": torch.sin(3 * sample)})

    batch = batch_of(6)
    loss, log = flow_step(Transformer(), batch, FlowLossConfig(label_dropout=0.5))
    t = seen["times"].view(-1, 1, 1, 1)
    noise = (seen["sample"] - t * batch["latents"]) / (1 - t)  # x_t = t x_1 + (1 - t) x_0
    target, velocity = batch["latents"] - noise, torch.sin(3 * seen["sample"])
    mse = (velocity - target).square().mean()
    cosine = (1 - F.cosine_similarity(velocity, target, dim=1)).mean()
    assert log["velocity_mse"].item() == pytest.approx(mse.item(), rel=1e-4)
    assert log["velocity_cosine"].item() == pytest.approx(cosine.item(), rel=1e-4)
    assert loss.item() == pytest.approx((mse + cosine).item(), rel=1e-4)
    assert abs(noise.mean()) < 0.2 and 0.8 < noise.std() < 1.2 and set(seen["labels"].tolist()) == {1, 9}
    plain, _ = flow_step(Transformer(), batch, FlowLossConfig(label_dropout=0.5, cosine_weight=0))
    assert plain.item() == pytest.approx(mse.item(), rel=1e-4)


def test_times_are_logit_normal_and_labels_drop_at_their_rate():
    batch = batch_of(4000, (1, 1, 1))
    times = draw_times(batch, "logit_normal").numpy()
    assert abs(np.median(times) - 0.5) < 0.03
    assert abs((times < 0.1).mean() - 0.0140) < 0.006  # the normal's Phi(-2.197)
    assert abs(draw_dropped(batch, 0.1).float().mean() - 0.1) < 0.02
    uniform = draw_times(batch, "uniform").numpy()
    assert abs((uniform < 0.1).mean() - 0.1) < 0.02
    with pytest.raises(ValueError, match="logit_normal or uniform"):
        draw_times(batch, "normal")
    # each sample's draws are its own, whatever batch it is in
    alone = {k: v[2000:2002] for k, v in batch.items()}
    assert np.array_equal(draw_times(alone, "logit_normal").numpy(), times[2000:2002])


def test_a_new_transformers_zero_output_gives_no_huge_gradient():
    velocity = torch.zeros(1, 4, 4, 4, requires_grad=True)
    _, cosine = velocity_errors(velocity, torch.ones(1, 4, 4, 4))
    cosine.sum().backward()
    assert 0 < velocity.grad.norm() < 1e3


# Training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    return go(place, tmp_path_factory.mktemp("runs") / "run")


def test_two_steps_make_a_pipeline(place, trained):
    _, people, tokenizer, latents = place
    assert len(events(trained, "train")) == 2
    (validation,) = events(trained, "validation")
    assert np.isfinite(validation["velocity_mse"]) and validation["images_seen"] == 3
    assert Image.open(trained / validation["images"]).size == (64, 64)  # two rows of real and generated, 32 px each
    assert "velocity_mse" in (trained / "model/README.md").read_text()
    pipe = LightningDiTPipeline.from_pretrained(trained / "model")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.config.num_classes == 3 and pipe.transformer.config.class_dropout_prob == 0.1
    assert pipe.scheduler.config.shift == pytest.approx(1 / 0.3)
    statistics = json.loads((latents / "latents.json").read_text())["statistics"]
    assert np.allclose(pipe.vae.config.latents_mean, statistics["mean"], atol=1e-6)
    assert np.allclose(pipe.vae.config.latents_std, statistics["std"], atol=1e-6)
    images = pipe([0, 2], num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images
    assert [image.size for image in images] == [(32, 32)] * 2


def test_normalisation_is_undone_by_the_pipeline(place, trained):
    """A latent as training saw it decodes to what the tokenizer makes of it as it was."""
    from radiodiff_diffusers.data.latents import LatentDataset

    raw, seen = (LatentDataset(place[3], normalize=n, sample=False)[0]["latents"][None] for n in (False, True))
    pipe = LightningDiTPipeline.from_pretrained(trained / "model")
    with torch.no_grad():
        assert torch.allclose(pipe.decode_latents(seen), pipe.vae.decode(raw).sample, atol=1e-4)
    assert not torch.allclose(raw, seen, atol=0.1)


@pytest.mark.parametrize("more", [["--normalize", "false"], ["--multiplier", "0.5"]])
def test_other_normalisations_are_undone_too(place, tmp_path, more):
    folder = go(place, tmp_path / "run", *more, "--max_steps", "1", "--validation.steps", "0")
    recipe = load("lightningdit")
    config = read("micro_doppler_s_tiny", "--data.source", str(place[3]), "--data.images", "null", *more)
    vae = tiny_tokenizer()
    item = recipe.open_latents(config.data, vae, 0)[0]["latents"][None]
    config.data.normalize, config.data.multiplier, config.data.sample = False, 1.0, True
    raw = recipe.open_latents(config.data, vae, 0)[0]["latents"][None]
    pipe = LightningDiTPipeline.from_pretrained(folder / "model")
    with torch.no_grad():
        assert torch.allclose(pipe.decode_latents(item), vae.decode(raw).sample, atol=1e-4)


def test_resuming_repeats_the_run(place, trained, tmp_path):
    stopped = go(place, tmp_path / "run", "--max_steps", "1", "--validation.steps", "0")
    go(place, stopped, "--resume", "latest")
    assert events(trained, "train")[1]["loss"] == events(stopped, "train")[1]["loss"]
    for name in ("models", "ema"):
        one, two = (load_file(f / f"checkpoints/step_00000002/{name}.safetensors") for f in (trained, stopped))
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_the_xl_recipe_in_small_stays_finite_in_bf16(place, tmp_path):
    """bf16, accumulation, gradient checkpointing and the norm on queries and keys, together."""
    folder = go(place, tmp_path / "run", "--learning_rate", "0.01", config="micro_doppler_xl_tiny")
    assert all(np.isfinite(e["loss"]) for e in events(folder, "train"))
    assert events(folder, "end")[0]["bad_steps"] == 0
    config = events(folder, "start")[0]["config"]
    assert config["train"]["mixed_precision"] == "bf16" and config["train"]["gradient_checkpointing"]
    assert (
        "blocks.0.attn.norm_q.weight"
        in LightningDiTPipeline.from_pretrained(folder / "model").transformer.state_dict()
    )


def test_held_out_latents_are_not_trained_on(place):
    recipe = load("lightningdit")
    config = read("micro_doppler_s_tiny", "--data.source", str(place[3]), "--data.images", "null")
    latents = recipe.open_latents(config.data, tiny_tokenizer(), 0)
    training, validation = (recipe.LatentSamples(latents, config.data, training=t) for t in (True, False))
    assert sorted(training.part + validation.part) == list(range(18)) and len(validation) == 3
    # the same images as the tokenizer's recipe holds out
    from radiodiff_diffusers.data.micro_doppler import MicroDopplerFolder

    folder = MicroDopplerFolder(place[1], size=32)
    _, held_out = folder.split(0.8, 0)
    assert [folder.items[i] for i in validation.part] == held_out.items


# Adapters ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def new_people(place, trained, tmp_path_factory):
    """Other people, two and four of them, as latents of the base's own tokenizer: `places[users]`."""
    root = tmp_path_factory.mktemp("new")
    places = {}
    for users in (2, 4):
        people = simulate_users(root / f"people_{users}", users=users, images_per_user=6, size=32, seed=1, processes=1)
        folder = root / f"latents_{users}"
        extract_latents(load_tokenizer(trained / "model"), MicroDopplerFolder(people, size=32), folder)
        places[users] = (root, people, "none", folder)
    return places


def adapt(place, base, folder, *more):
    more = ["--model.base", base / "model", "--batch_size", "8", "--learning_rate", "0.02", "--lora.rank", "4", *more]
    return go(place, folder, *more, config="lora_users_tiny")


def sampled(pipe, *labels):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(list(labels), num_inference_steps=3, generator=generator, output_type="latent").images


def test_an_adapter_for_new_users(new_people, trained, tmp_path):
    """Trained, saved, loaded on the base by the calls of the U-Net's adapters; the base gets back what it was."""
    folder = adapt(new_people[2], trained, tmp_path / "run")
    made = {path.name for path in (folder / "model").iterdir()}
    assert "pytorch_lora_weights.safetensors" in made and "transformer" not in made and "model_index.json" not in made
    weights = load_file(folder / "model/pytorch_lora_weights.safetensors")
    assert all(".lora_" in name for name in weights)
    assert weights["transformer.label_embedding.lora_embedding_A"].abs().sum() > 0
    card = (folder / "model/README.md").read_text()
    assert "pipe.load_lora_weights(" in card and "set_num_classes" not in card
    trained_on = load_file(folder / "checkpoints/step_00000002/models.safetensors")
    assert all(".lora_" in name for name in trained_on)  # the base's own weights did not train

    pipe = LightningDiTPipeline.from_pretrained(trained / "model")
    base = sampled(pipe, 0, 1)
    pipe.load_lora_weights(folder / "model", adapter_name="new")
    adapted = sampled(pipe, 0, 1)
    assert not torch.allclose(adapted, base, atol=1e-4)
    # what the run itself validated: the averaged weights at the last step
    average = load_file(folder / "checkpoints/step_00000002/ema.safetensors")
    for name, tensor in pipe.transformer.state_dict().items():
        if ".lora_" in name:
            assert torch.equal(tensor, average["transformer." + name.replace(".new", ".default")]), name
    pipe.fuse_lora()
    assert torch.allclose(sampled(pipe, 0, 1), adapted, atol=1e-4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.allclose(sampled(pipe, 0, 1), base, atol=1e-4)


def test_generate_with_an_adapter(new_people, trained, tmp_path):
    """Folders of images by user; those of the adapter are not mixed with the base's, and a stopped command goes on."""
    adapter = adapt(new_people[2], trained, tmp_path / "run") / "model"
    generate = load("lightningdit", "generate")

    def images(folder, *more):
        options = ["--users", "0", "1", "--count", "2", "--steps", "3", "--device", "cpu", *map(str, more)]
        assert generate.main([str(trained / "model"), str(folder), *options]) == 0
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}

    base, adapted = images(tmp_path / "base"), images(tmp_path / "adapted", "--lora", adapter)
    assert list(base) == ["user_00/0000.png", "user_00/0001.png", "user_01/0000.png", "user_01/0001.png"]
    assert base.keys() == adapted.keys() and all(base[name] != adapted[name] for name in base)
    (tmp_path / "adapted/user_01/0000.png").unlink()
    assert images(tmp_path / "adapted", "--lora", adapter) == adapted
    with pytest.raises(ValueError, match="holds images of another model"):
        images(tmp_path / "base", "--lora", adapter)
    with pytest.raises(OSError, match="no such adapter"):
        images(tmp_path / "base", "--lora", tmp_path / "nowhere")


def test_an_adapter_for_more_users_than_the_base_has(new_people, trained, tmp_path, caplog):
    folder = adapt(new_people[4], trained, tmp_path / "run")
    assert "3 classes replaced by 4 new ones" in caplog.text
    assert "pipe.transformer.set_num_classes(4)" in (folder / "model/README.md").read_text()
    pipe = LightningDiTPipeline.from_pretrained(trained / "model")
    with pytest.raises(ValueError, match="trained with 4 classes and the model has 3: call pipe.transformer.set_num"):
        pipe.load_lora_weights(folder / "model")
    pipe.transformer.set_num_classes(4)
    pipe.load_lora_weights(folder / "model")
    assert sampled(pipe, 3).isfinite().all()
    with pytest.raises(ValueError, match="unload it before the number of classes changes"):
        pipe.transformer.set_num_classes(5)


def test_the_new_latents_are_normalised_as_the_bases_were(new_people, trained):
    """Its pipeline undoes its own statistics, whatever those of the new users are."""
    config = read("lora_users_tiny", "--model.base", str(trained / "model"), "--data.source", str(new_people[2][3]))
    config.data.images, config.data.sample = None, False
    *_, latents, _ = load("lightningdit").open_base(config)
    pipe = LightningDiTPipeline.from_pretrained(trained / "model")
    raw = load_file(next(new_people[2][3].glob("*.safetensors")))["latents"][:1]
    with torch.no_grad():
        expected = pipe.vae.decode(raw).sample
        assert torch.allclose(pipe.decode_latents(latents[0]["latents"][None]), expected, atol=1e-4)


def test_what_an_adapter_cannot_have(place, new_people, trained, tmp_path):
    with pytest.raises(ValueError, match="model.base brings its own weights and tokenizer"):
        adapt((*place[:2], place[2], place[3]), trained, tmp_path / "run")
    with pytest.raises(ValueError, match="lora.targets: 'everything' names no linear .*attention, feed_forward, all"):
        adapt(new_people[2], trained, tmp_path / "run", "--targets", "everything")
    tiny_tokenizer(seed=1).save_pretrained(tmp_path / "other")
    extract_latents(load_tokenizer(tmp_path / "other"), MicroDopplerFolder(place[1], size=32), tmp_path / "theirs")
    with pytest.raises(ValueError, match="made with another tokenizer"):
        adapt((*place[:2], "none", tmp_path / "theirs"), trained, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Starting weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight_classes(tmp_path_factory):
    torch.manual_seed(0)
    model = LightningDiTTransformer2DModel(**SMALL_DIT | {"sample_size": 8, "num_classes": 8, "patch_size": 1})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("eight")
    model.save_pretrained(folder)
    return model, folder


LIKE_IT = ["--model.transformer", "{num_layers: 2, num_attention_heads: 2, attention_head_dim: 16, patch_size: 1}"]


def test_init_from_other_classes_starts_at_the_null_row(place, eight_classes, tmp_path, caplog):
    model, where = eight_classes
    with caplog.at_level(logging.WARNING):
        folder = go(place, tmp_path / "run", *LIKE_IT, "--init_from", where, "--max_steps", "1", "--scenes", "1")
    start = load_file(folder / "checkpoints/step_00000000/models.safetensors")
    table = start["transformer.label_embedding.weight"]
    assert table.shape[0] == 4 and torch.equal(table, model.label_embedding.weight[8].expand_as(table))
    assert torch.equal(start["transformer.blocks.1.ff.net.2.weight"], model.blocks[1].ff.net[2].weight)
    assert "8 classes replaced by 3 new ones" in caplog.text
    assert "new and starts at 1" in caplog.text  # the norm on queries and keys, which the model did not have
    assert torch.equal(start["transformer.blocks.0.attn.norm_q.weight"], torch.ones(16))


def test_init_from_an_original_checkpoint(place, tmp_path):
    """The recorded case as a released file; that its latents have other channels than ours is one line."""
    manifest = json.loads((Path(__file__).parent / "goldens/lightningdit_manifest.json").read_text())
    state_dict, config = golden_case(next(iter(manifest["keys"])))
    torch.save({"ema": state_dict}, tmp_path / "dit.pt")
    transformer = LightningDiTTransformer2DModel(
        **load("lightningdit").lightningdit_from_original(state_dict, num_heads=config["num_heads"]).config
    )
    load("lightningdit").start_from(str(tmp_path / "dit.pt"), transformer)
    name = "blocks.0.mlp.w3.weight"
    assert torch.equal(transformer.state_dict()["blocks.0.ff.net.2.weight"], state_dict[name])
    with pytest.raises(ValueError, match="another transformer than the configuration asks for|does not fit"):
        go(place, tmp_path / "run", "--init_from", tmp_path / "dit.pt")


def test_init_from_what_is_not_there(place, tmp_path):
    with pytest.raises(ValueError, match="no such file or folder"):
        go(place, tmp_path / "run", "--init_from", tmp_path / "xl.pt")
    with pytest.raises(ValueError, match="holds AutoencoderKL, expected LightningDiTTransformer2DModel"):
        go(place, tmp_path / "run", "--init_from", place[2])
    with pytest.raises(ValueError, match="model.transformer has no 'num_layer'; known: .*num_layers"):
        go(place, tmp_path / "run", "--model.transformer.num_layer", "3")


# What must stop ----------------------------------------------------------------------------------------------------


def copy_of(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_another_tokenizer(place, tmp_path):
    (tmp_path / "runs").mkdir()  # so that it cannot be meant for the Hub
    with pytest.raises(ValueError, match="runs/nowhere: no such file or folder"):
        go(place, tmp_path / "run", "--model.vae", "runs/nowhere")
    broken = copy_of(place[2], tmp_path / "broken")
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="the tokenizer .*broken cannot be loaded") as error:
        go(place, tmp_path / "run", "--model.vae", broken)
    assert "\n" not in str(error.value)
    tiny_tokenizer(seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="made with another tokenizer"):
        go(place, tmp_path / "run", "--model.vae", tmp_path / "other")
    with pytest.raises(ValueError, match="name the tokenizer"):
        go(place, tmp_path / "run", "--model.vae", "none")


def test_images_that_changed_and_users_in_another_order(place, tmp_path, caplog):
    import shutil

    changed = tmp_path / "changed"
    shutil.copytree(place[1], changed)
    Image.new("RGB", (32, 32)).save(changed / "user_01/0000.png")
    with pytest.raises(ValueError, match="images have changed"):
        go(place, tmp_path / "run", "--data.images", changed)
    swapped = tmp_path / "swapped"
    shutil.copytree(place[1], swapped)
    (swapped / "user_00").rename(swapped / "user_09")
    with pytest.raises(ValueError, match="class 0 is nobody in the data and user_00"):
        go(place, tmp_path / "run", "--data.images", swapped)
    assert "keep their numbers" not in caplog.text  # one line says it


def test_latents_without_statistics_truncated_or_of_too_few_classes(place, tmp_path):
    bare = copy_of(place[3], tmp_path / "bare")
    (bare / "latents.json").unlink()
    (bare / "latents_stats.pt").unlink()
    for shard in bare.glob("*.safetensors"):  # as the original's extraction left them: no fingerprints
        save_file({k: v for k, v in load_file(shard).items() if k in ("latents", "labels")}, shard)
    with pytest.raises(ValueError, match="no statistics"):
        go(place, tmp_path / "run", "--data.source", bare, "--data.images", "null")
    torn = copy_of(place[3], tmp_path / "torn")
    shard = sorted(torn.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{shard.name} cannot be read"):
        go(place, tmp_path / "run", "--data.source", torn)
    with pytest.raises(ValueError, match="no latents of 1 of 4 classes, the first is 3"):
        go(place, tmp_path / "run", "--num_classes", "4")
    with pytest.raises(ValueError, match="set data.num_classes"):
        go(place, tmp_path / "run", "--model.transformer.num_classes", "4")
    assert not (tmp_path / "run/checkpoints").exists()


# Slow: it learns, and the whole way in four commands ---------------------------------------------------------------


@pytest.mark.slow
def test_four_commands(tmp_path, monkeypatch):
    """From nothing to spectrograms of a chosen user, as a user would type it."""
    from radiodiff_diffusers import cli

    monkeypatch.chdir(tmp_path)
    assert cli.main(["gait", "data/tiny_users", "--users", "4", "--images", "20", "--size", "64"]) == 0
    train("va_vae", "micro_doppler_tiny", tmp_path / "runs/micro_doppler_tiny", cwd=tmp_path)
    command = "latents extract data/tiny_users --size 64 -t runs/micro_doppler_tiny/model -o data/tiny_latents"
    assert cli.main(command.split()) == 0
    folder = train("lightningdit", "micro_doppler_s_tiny", tmp_path / "runs/micro_doppler_s_tiny", cwd=tmp_path)
    scores = events(folder, "validation")
    assert scores[-1]["velocity_mse"] < 1.6 < events(folder, "train")[0]["loss/velocity_mse"]
    pipe = LightningDiTPipeline.from_pretrained(folder / "model")
    pipe.set_progress_bar_config(disable=True)
    images = pipe([3, 3], num_inference_steps=20, generator=torch.Generator().manual_seed(0)).images
    assert images[0].size == (64, 64) and images[0].tobytes() != images[1].tobytes()

    # and an adapter that makes them other people
    command = "gait data/new_tiny_users --users 4 --images 20 --size 64 --seed 1"
    assert cli.main(command.split()) == 0
    command = (
        "latents extract data/new_tiny_users --size 64 -t runs/micro_doppler_s_tiny/model -o data/new_tiny_latents"
    )
    assert cli.main(command.split()) == 0
    more = ["--validation.steps", "20"]
    folder = train("lightningdit", "lora_users_tiny", tmp_path / "runs/lora_users_tiny", *more, cwd=tmp_path)
    errors = [e["velocity_mse"] for e in events(folder, "validation")]
    assert errors[-1] < 0.97 * errors[0]
    pipe.load_lora_weights(folder / "model")
    again = pipe([3, 3], num_inference_steps=20, generator=torch.Generator().manual_seed(0)).images
    assert again[0].tobytes() != images[0].tobytes()

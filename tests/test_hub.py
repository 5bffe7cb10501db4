"""Saving, publishing and loading: local folders, and a stand-in for the Hub that answers the real client.

What depends on a process's first imports or on the Hub's address runs in fresh processes, few of them since each costs
seconds.
"""

import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoModel, DiffusionPipeline
from fresh import run_fresh
from hub_standin import HubStandIn
from safetensors.torch import load_file, save_file
from test_registration import plugin  # noqa: F401  (a fixture)

from radiodiff_diffusers import ConstSDEScheduler, RadioDiffPipeline, RadioDiffUNet2DModel, Scene
from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def tiny_pipeline(with_vae=False, **options):
    torch.manual_seed(0)
    vae = None
    if with_vae:
        vae = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            latent_channels=3,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            sample_size=32,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ).eval()
        encoder = {"width": 8, "stride": 2, "max_width": 16}
        options |= {"in_channels": 3, "patch_size": 1, "sample_size": 16, "condition_encoder_config": encoder}
    unet = RadioDiffUNet2DModel(**{**RADIODIFF_UNET_PRESETS["test"], **options}).eval()
    return RadioDiffPipeline(unet, ConstSDEScheduler(), vae, num_inference_steps=2)


def scene():
    buildings = np.zeros((32, 32), bool)
    buildings[8:14, 10:20] = True
    return Scene(buildings, transmitter=(4, 4))


def predict(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(scene(), generator=3).maps[0].gain_db


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "radio"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


# What is saved -----------------------------------------------------------------------------------------------------


def test_a_saved_folder_can_be_handed_on(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "RadioDiffPipeline"
    assert index["unet"] == ["radiodiff_diffusers", "RadioDiffUNet2DModel"]
    assert index["scheduler"] == ["radiodiff_diffusers", "ConstSDEScheduler"]
    assert set(files_of(saved)) == {
        "README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS,
    }  # fmt: skip
    for path in (saved / "unet", *saved.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o644), path


def test_the_model_card_is_ours(saved):
    card = (saved / "README.md").read_text()
    head = card.split("---")[1]
    assert "library_name: diffusers" in head and "license: apache-2.0" in head
    for part in (
        "from radiodiff_diffusers import RadioDiffPipeline",
        "## Data",
        "etrics",
        "## Licence",
        "buildings, transmitter",
    ):
        assert part in card, part
    assert "More Information Needed" not in card


def test_no_local_path_leaks_and_a_card_is_kept(copy, tmp_path):
    (copy / "README.md").write_text("# My own card\n")
    pipe = RadioDiffPipeline.from_pretrained(copy)
    pipe.save_pretrained(tmp_path / "again")
    pipe.save_pretrained(copy)
    for folder in (tmp_path / "again", copy):
        for name, content in files_of(folder).items():
            assert str(tmp_path).encode() not in content and b"_name_or_path" not in content, name
    assert (copy / "README.md").read_text() == "# My own card\n"
    assert "RadioDiffPipeline" in (tmp_path / "again" / "README.md").read_text()


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    secret = tmp_path / "private" / "keys.json"
    secret.parent.mkdir(mode=0o700)
    others = {tmp_path / "train.sh": "true", tmp_path / "notes.json": '{"_name_or_path": 1}', secret: "not JSON"}
    for path, text in others.items():
        path.write_text(text)
        path.chmod(0o600)
    tiny_pipeline().save_pretrained(tmp_path)
    for path, text in others.items():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == text
    assert stat.S_IMODE(secret.parent.stat().st_mode) == 0o700


def test_an_adapter_is_readable_by_others(saved, tmp_path):
    from peft import LoraConfig

    from radiodiff_diffusers.lora import adapter_of

    pipe = RadioDiffPipeline.from_pretrained(saved)
    layers = [name for name, layer in pipe.unet.named_modules() if type(layer) is torch.nn.Conv2d][:2]
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=layers))
    pipe.save_lora_weights(tmp_path / "adapter", **adapter_of(pipe.unet, "unet"))
    (file,) = (tmp_path / "adapter").glob("*.safetensors")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    again = RadioDiffPipeline.from_pretrained(saved)
    again.load_lora_weights(tmp_path / "adapter")
    assert np.array_equal(predict(again), predict(pipe))


# How it loads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_vae", [False, True], ids=["pixels", "latents"])
def test_round_trip_by_both_loaders(with_vae, tmp_path):
    pipe = tiny_pipeline(with_vae)
    expected = predict(pipe)
    pipe.save_pretrained(tmp_path)
    for loader in (RadioDiffPipeline, DiffusionPipeline):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is RadioDiffPipeline
        assert np.allclose(predict(loaded), expected, atol=1e-3)
        assert (loaded.vae is not None) == with_vae
    assert type(AutoModel.from_pretrained(str(tmp_path), subfolder="unet")) is RadioDiffUNet2DModel
    assert type(AutoModel.from_pretrained(str(tmp_path / "unet"))) is RadioDiffUNet2DModel


def test_variant_fp16(tmp_path):
    pipe = tiny_pipeline()
    expected = predict(pipe)
    pipe.save_pretrained(tmp_path)
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    half = tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors"
    assert half.stat().st_size < 0.6 * (tmp_path / WEIGHTS).stat().st_size
    loaded = RadioDiffPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float32)
    assert loaded.unet.dtype == torch.float32
    assert 0 < np.abs(predict(loaded) - expected).max() < 1.0  # dB; halved weights are other weights, but near


def test_sharded(tmp_path):
    pipe = tiny_pipeline()
    expected = predict(pipe)
    pipe.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) >= 3
    for loader in (RadioDiffPipeline, DiffusionPipeline):
        assert np.allclose(predict(loader.from_pretrained(tmp_path)), expected, atol=1e-3)


def test_dtype_and_device_map(saved):
    loaded = RadioDiffPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    assert loaded.unet.dtype == torch.bfloat16
    mixed = DiffusionPipeline.from_pretrained(saved, dtype={"unet": torch.float16, "default": torch.float32})
    assert mixed.unet.dtype == torch.float16
    expected = predict(RadioDiffPipeline.from_pretrained(saved))
    model = RadioDiffUNet2DModel.from_pretrained(saved, subfolder="unet", device_map="auto")
    assert np.allclose(
        predict(RadioDiffPipeline(model, ConstSDEScheduler(), num_inference_steps=2)), expected, atol=1e-3
    )
    whole = RadioDiffPipeline.from_pretrained(saved, device_map="cpu")
    assert np.allclose(predict(whole), expected, atol=1e-3)


def test_own_components_replace_the_saved_ones(saved):
    unet = tiny_pipeline(condition_channels=["buildings", "log_distance"]).unet
    loaded = DiffusionPipeline.from_pretrained(saved, unet=unet)
    assert loaded.unet is unet


# What does not load, in one line -----------------------------------------------------------------------------------


def no_index(folder):
    (folder / "model_index.json").unlink()


def cut_weights(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000])


def cut_within_the_header(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:40])


def empty_weights(folder):
    (folder / WEIGHTS).write_bytes(b"")


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def no_model(folder):
    shutil.rmtree(folder / "unet")


def broken_configuration(folder):
    (folder / "unet/config.json").write_text('{"sample_size": ')


def unknown_channel(folder):
    change(folder / "unet/config.json", '"transmitter"', '"transmiter"')


def another_layer(folder):
    tensors = load_file(folder / WEIGHTS)
    name = next(iter(tensors))
    tensors[name] = torch.zeros(7, 3)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (no_index, "is no pipeline: it has no model_index.json"),
        (cut_weights, f"{WEIGHTS} is damaged or was cut short: copy or download it again"),
        (cut_within_the_header, "is damaged or was cut short"),
        (empty_weights, "is damaged or was cut short"),
        (no_weights, "is incomplete: unet/ has no weights (diffusion_pytorch_model.safetensors)"),
        (no_model, "is incomplete: unet/ has no configuration, though model_index.json names it"),
        (broken_configuration, "unet/config.json' is not a valid JSON file"),
        (unknown_channel, "unknown condition channel 'transmiter'; known: "),
        (another_layer, "expected shape"),
    ],
)
def test_a_spoilt_folder_gets_one_line(copy, spoil, says):
    spoil(copy)
    with pytest.raises((OSError, ValueError)) as error:
        RadioDiffPipeline.from_pretrained(copy)
    assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "./models/radio", "a/b/c", "me/what is this"])
def test_a_name_that_can_be_nothing_gets_one_line(name):
    with pytest.raises(OSError) as error:
        RadioDiffPipeline.from_pretrained(name)
    assert (
        str(error.value)
        == f"{name}: no such folder; expected one that save_pretrained wrote, or a Hub id such as owner/name"
    )


def test_a_variant_that_is_not_there_gets_one_line(saved):
    with pytest.raises(ValueError, match="variant=fp16") as error:
        RadioDiffPipeline.from_pretrained(saved, variant="fp16")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"])
def test_a_folder_of_one_variant_says_which(copy, name):
    (copy / WEIGHTS).rename(copy / "unet" / f"diffusion_pytorch_{name}")
    with pytest.raises(OSError, match="holds only the variant fp16: pass variant='fp16'"):
        RadioDiffPipeline.from_pretrained(copy)


# The Hub -----------------------------------------------------------------------------------------------------------

COMMON = """
import json, sys
import numpy as np

def predict(pipe):
    from radiodiff_diffusers import Scene
    buildings = np.zeros((32, 32), bool)
    buildings[8:14, 10:20] = True
    pipe.set_progress_bar_config(disable=True)
    return pipe(Scene(buildings, transmitter=(4, 4)), generator=3).maps[0].gain_db.tolist()

def complaint(load, *words, **options):
    try:
        load(*words, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""

# ours first, diffusers after: push, list, load what was pushed, and what goes wrong on the way
PUSH_AND_LOAD = (
    COMMON
    + """
import radiodiff_diffusers
from diffusers import DiffusionPipeline
from radiodiff_diffusers import RadioDiffPipeline
folder, said = sys.argv[1], {}
pipe = DiffusionPipeline.from_pretrained(folder)
said["class"] = type(pipe).__name__
pipe.push_to_hub("me/radio")
pipe.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="me/saved-and-pushed")
from huggingface_hub import list_repo_files
said["files"] = sorted(list_repo_files("me/radio"))
said["local"], said["hub"] = predict(pipe), predict(RadioDiffPipeline.from_pretrained("me/radio"))
said["missing"] = complaint(RadioDiffPipeline.from_pretrained, "me/nothing")
said["incomplete"] = complaint(RadioDiffPipeline.from_pretrained, "me/incomplete")
said["cut off"] = complaint(RadioDiffPipeline.from_pretrained, "me/cut-off")
said["no index"] = complaint(RadioDiffPipeline.from_pretrained, "me/no-index")
print(json.dumps(said))
"""
)

# diffusers first, with its loader already imported, and an empty cache
DIFFUSERS_FIRST = (
    COMMON
    + """
from diffusers import AutoModel, DiffusionPipeline
import radiodiff_diffusers
said = {}
pipe = DiffusionPipeline.from_pretrained("me/radio")
said["class"], said["hub"] = type(pipe).__name__, predict(pipe)
said["cached"] = predict(DiffusionPipeline.from_pretrained("me/radio", local_files_only=True))
said["model"] = type(AutoModel.from_pretrained("me/radio", subfolder="unet")).__name__
said["again"] = type(DiffusionPipeline.from_pretrained("me/cut-off")).__name__
print(json.dumps(said))
"""
)

# our class first, no network allowed, the cache of the process before; and a channel of a second package
OFFLINE = (
    COMMON
    + """
from radiodiff_diffusers import RadioDiffPipeline
from diffusers import DiffusionPipeline
said = {"ours": predict(RadioDiffPipeline.from_pretrained("me/radio"))}
said["plain"] = predict(DiffusionPipeline.from_pretrained("me/radio"))
said["unknown"] = complaint(RadioDiffPipeline.from_pretrained, "me/never-seen")
said["channels"] = DiffusionPipeline.from_pretrained(sys.argv[1]).unet.config.condition_channels
said["map"] = np.shape(predict(DiffusionPipeline.from_pretrained(sys.argv[1])))
print(json.dumps(said))
"""
)


@pytest.fixture(scope="module")
def hub(saved):
    with HubStandIn() as hub:
        files = files_of(saved)
        hub.repos["models/me/incomplete"] = {name: content for name, content in files.items() if name != WEIGHTS}
        hub.repos["models/me/no-index"] = {
            name: content for name, content in files.items() if name != "model_index.json"
        }
        hub.repos["models/me/cut-off"] = dict(files)
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, saved, tmp_path_factory):
    """What the first process said, which pushed."""
    hub.cut_off.add(("models/me/cut-off", WEIGHTS))
    place = tmp_path_factory.mktemp("first")
    said = run_fresh(PUSH_AND_LOAD, hub.environment(place / "home"), saved, place / "copy")
    hub.cut_off.clear()
    return said


@pytest.fixture(scope="module")
def loaded(hub, pushed, tmp_path_factory):
    """The second process's cache and what it said, which loaded with diffusers imported first."""
    home = tmp_path_factory.mktemp("second")
    return home, run_fresh(DIFFUSERS_FIRST, hub.environment(home))


def test_pushed_repositories_are_fit_for_others(hub, pushed, saved):
    assert pushed["class"] == "RadioDiffPipeline"
    for repo in ("models/me/radio", "models/me/saved-and-pushed"):
        files = hub.repos[repo]
        assert set(files_of(saved)) <= set(files)
        assert not any(name.endswith((".bin", ".py", ".pt")) for name in files)
        assert files[WEIGHTS] == (saved / WEIGHTS).read_bytes()
        card = files["README.md"].decode()
        assert "from radiodiff_diffusers import RadioDiffPipeline" in card and "More Information Needed" not in card
        for name, content in files.items():
            assert str(saved.parent).encode() not in content and b"_name_or_path" not in content, name
    assert set(pushed["files"]) == set(hub.repos["models/me/radio"])


def test_what_was_pushed_predicts_the_same(pushed, loaded, saved):
    expected = predict(RadioDiffPipeline.from_pretrained(saved))
    for found in (pushed["local"], pushed["hub"], loaded[1]["hub"], loaded[1]["cached"]):
        assert np.allclose(found, expected, atol=1e-3)
    assert loaded[1]["class"] == "RadioDiffPipeline" and loaded[1]["model"] == "RadioDiffUNet2DModel"


@pytest.mark.parametrize(
    "case, says",
    [
        ("missing", "OSError: me/nothing is not on the Hub, or not to be seen by you, and no such folder is here"),
        ("incomplete", "OSError: me/incomplete is incomplete: unet/ has no weights"),
        ("cut off", "OSError: the download of me/cut-off broke off"),
        ("no index", "OSError: me/no-index is no pipeline: it has no model_index.json"),
    ],
)
def test_what_the_hub_cannot_give_gets_one_line(pushed, case, says):
    assert says in pushed[case] and "\n" not in pushed[case]


def test_a_download_that_broke_off_can_be_called_again(loaded):
    assert loaded[1]["again"] == "RadioDiffPipeline"


def test_offline_from_the_cache_and_with_a_channel_of_another_package(hub, loaded, plugin, tmp_path, saved):  # noqa: F811
    home, _ = loaded
    folder = tmp_path / "with plugin"
    shutil.copytree(saved, folder)
    change(folder / "unet/config.json", '"transmitter"', '"test_slope"')
    path = f"{plugin}:{Path(__file__).parents[1]}"
    before = len(hub.log)
    said = run_fresh(OFFLINE, hub.environment(home, HF_HUB_OFFLINE="1", PYTHONPATH=path), folder)
    assert hub.log[before:] == []
    expected = predict(RadioDiffPipeline.from_pretrained(saved))
    assert np.allclose(said["ours"], expected, atol=1e-3) and np.allclose(said["plain"], expected, atol=1e-3)
    assert said["unknown"].startswith("OSError: me/never-seen is not on this machine and the Hub was not reached")
    assert said["channels"] == ["buildings", "test_slope", "buildings"] and said["map"] == [32, 32]

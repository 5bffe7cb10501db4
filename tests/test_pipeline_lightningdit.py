"""LightningDiTPipeline: the original's Euler sampler and guidance, and the manners of a diffusers pipeline."""

import json
import logging

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from fresh import run_fresh
from golden_weights import GOLDENS, draw, filled
from hub_standin import HubStandIn
from safetensors.torch import load_file

from radiodiff_diffusers import LightningDiTPipeline, LightningDiTTransformer2DModel
from radiodiff_diffusers.convert.lightningdit import lightningdit_from_original
from radiodiff_diffusers.convert.vavae import set_latent_statistics
from radiodiff_diffusers.lora import adapter_of


def tiny_vae(latent_channels=8, colours=3, statistics=True):
    torch.manual_seed(1)
    vae = AutoencoderKL(
        in_channels=colours,
        out_channels=colours,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=latent_channels,
        sample_size=16,
        scaling_factor=1.0,
    )
    if statistics:
        set_latent_statistics(vae, torch.linspace(-1, 1, latent_channels), torch.linspace(0.5, 2, latent_channels))
    return vae.eval()


def make_pipe(shift=1.0, **vae_options):
    """The transformer whose samples were recorded from the original: 8 x 4 x 4 latents, 5 classes."""
    entry = json.loads((GOLDENS / "lightningdit_options_manifest.json").read_text())["sampler"]
    state_dict = {name: filled(name, shape) for name, (how, shape) in entry["keys"].items() if how == "fill"}
    transformer = lightningdit_from_original(state_dict, num_heads=3)
    transformer.register_to_config(sample_size=4)
    pipe = LightningDiTPipeline(
        vae=tiny_vae(**vae_options),
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("steps", "shift", "scale", "start"),
    [(5, 0.0, 1.0, 0.0), (5, 0.0, 4.0, 0.0), (7, 0.3, 6.7, 0.11), (50, 0.3, 4.0, 0.1)],
)
def test_times_and_samples_of_the_original_sampler(steps, shift, scale, start):
    """Three guided channels, interval on the shifted time, n points in time and n - 1 evaluations, as recorded."""
    golden = load_file(GOLDENS / "lightningdit_options.safetensors")
    key = f"sampler.n{steps}.shift{shift}.cfg{scale}.start{start}"
    pipe, times, batches = make_pipe(), [], []

    def watch(module, args, kwargs, output):
        times.append(float(args[1]))
        batches.append(len(args[0]))

    pipe.transformer.register_forward_hook(watch, with_kwargs=True)
    samples = pipe(
        class_labels=[3, 3, 1],
        num_inference_steps=steps,
        guidance_scale=scale,
        guidance_channels=3,
        guidance_interval=start,
        timestep_shift=shift,
        latents=draw(750, 3, 8, 4, 4),
        output_type="latent",
    ).images
    assert len(times) == steps - 1 == pipe.num_timesteps
    assert np.allclose(times, golden[key + ".t"], atol=1e-6)
    assert (samples - golden[key]).abs().max() < 1e-4
    guided = [scale > 1 and t >= start for t in golden[key + ".t"].tolist()]
    assert batches == [6 if g else 3 for g in guided]  # both labels in one forward, and only where guided


def test_time_grid_of_the_specification():
    pipe = make_pipe()
    times = 1 - pipe.prepare_timesteps(50, 0.3, "cpu") / 1000
    assert np.allclose(times[:5], [0, 0.006211, 0.012605, 0.019190, 0.025974], atol=1e-6)
    assert np.allclose(times[-2:], [0.875776, 0.935065], atol=1e-6)
    assert pipe.scheduler.sigmas[-1] == 0
    # the scheduler's own configuration is the default, and a call leaves it alone
    configured = make_pipe(shift=1 / 0.3)
    assert torch.allclose(configured.prepare_timesteps(50, None, "cpu"), pipe.scheduler.timesteps, atol=1e-3)
    configured.prepare_timesteps(50, 0, "cpu")
    assert torch.allclose(configured.prepare_timesteps(50, None, "cpu"), pipe.scheduler.timesteps, atol=1e-3)
    # first unguided steps of n = 50 and 250 at a start of 0.11
    for steps, unguided in ((50, 15), (250, 73)):
        times = 1 - pipe.prepare_timesteps(steps, 0.3, "cpu") / 1000
        assert int((times < 0.11).sum()) == unguided


def test_all_channels_are_guided_by_default():
    """Against the formula by hand: null + scale (class - null) on every channel."""
    pipe, noise = make_pipe(), draw(750, 1, 8, 4, 4)
    sample = pipe([2], 5, guidance_scale=3.0, latents=noise, output_type="latent").images
    expected, times = noise, torch.linspace(0, 1, 5)
    with torch.no_grad():
        for now, after in zip(times[:-1], times[1:], strict=True):
            velocity, null = (pipe.transformer(expected, now, torch.tensor([label])).sample for label in (2, 5))
            expected = expected + (after - now) * (null + 3.0 * (velocity - null))
    assert (sample - expected).abs().max() < 1e-4
    first_three = pipe([2], 5, guidance_scale=3.0, guidance_channels=3, latents=noise, output_type="latent").images
    assert (first_three - sample).abs().max() > 1e-2
    eight = pipe([2], 5, guidance_scale=3.0, guidance_channels=8, latents=noise, output_type="latent").images
    assert torch.equal(eight, sample)


def test_an_image_does_not_depend_on_its_batch():
    pipe = make_pipe()
    options = dict(num_inference_steps=4, output_type="latent")
    together = pipe([1, 4, 1], generator=[generator(s) for s in (7, 8, 9)], **options).images
    for i, (label, seed) in enumerate(((1, 7), (4, 8), (1, 9))):
        alone = pipe(label, generator=generator(seed), **options).images
        assert (alone[0] - together[i]).abs().max() < 1e-5
    assert (together[0] - together[2]).abs().max() > 1e-2
    first, again = (pipe([1, 4, 1], generator=generator(7), **options).images for _ in range(2))
    assert torch.equal(first, again)


def test_noise_is_that_of_the_seed():
    pipe, seen = make_pipe(), []
    pipe.transformer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    pipe([0, 1], 3, guidance_scale=1.0, generator=generator(5))
    assert torch.equal(seen[0], torch.randn(2, 8, 4, 4, generator=generator(5)))


def test_statistics_are_applied_when_decoding(caplog):
    pipe = make_pipe()
    latents = pipe([1], 4, generator=generator(), output_type="latent").images
    config = pipe.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        expected = (pipe.vae.decode(latents * std + mean).sample / 2 + 0.5).clamp(0, 1)
    image = pipe([1], 4, generator=generator(), output_type="pt").images
    assert (image - expected).abs().max() < 1e-5
    plain = make_pipe(statistics=False)
    with caplog.at_level(logging.WARNING):
        other = plain([1], 4, generator=generator(), output_type="pt").images
    assert "no latents_mean" in caplog.text and (other - image).abs().max() > 1e-3


def test_output_types_and_sizes():
    pipe = make_pipe()
    images = pipe([1, 2], 3, generator=generator()).images
    assert len(images) == 2 and images[0].size == (16, 16) and images[0].mode == "RGB"
    array = pipe([1, 2], 3, generator=generator(), output_type="np", return_dict=False)[0]
    assert array.shape == (2, 16, 16, 3) and 0 <= array.min() <= array.max() <= 1
    assert np.array_equal(np.asarray(images[1]), np.round(array[1] * 255).astype(np.uint8))
    assert pipe(1, 3, height=24, width=40, output_type="pt").images.shape == (1, 3, 24, 40)
    gray = make_pipe(colours=1)([1], 3).images[0]
    assert gray.mode == "L" and gray.size == (16, 16)
    assert pipe(torch.tensor([0, 5]), 3, output_type="latent").images.shape[0] == 2  # 5: no class


def test_callback_and_interrupt():
    pipe, steps = make_pipe(), []

    def callback(pipe, step, timestep, kwargs):
        steps.append((step, float(timestep)))
        assert set(kwargs) == {"latents"}
        if step == 1:
            pipe._interrupt = True
        return {"latents": torch.zeros_like(kwargs["latents"])}

    latents = pipe([1], 6, generator=generator(), callback_on_step_end=callback, output_type="latent").images
    assert [s for s, _ in steps] == [0, 1] and steps[0][1] == 1000
    assert torch.count_nonzero(latents) == 0


def test_progress_bar_counts_evaluations(capsys):
    pipe = make_pipe()
    pipe.set_progress_bar_config(disable=False)
    pipe([1], 6)
    output = capsys.readouterr()
    assert "5/5" in output.err and output.out == ""


def test_no_gradients_are_kept():
    assert not make_pipe()([1], 3, output_type="pt").images.requires_grad


def test_half_precision():
    pipe = make_pipe()
    exact = pipe([1], 4, generator=generator(), output_type="pt").images
    half = pipe.to(torch.bfloat16)([1], 4, generator=generator(), output_type="pt").images
    assert half.isfinite().all() and (half.float() - exact).abs().mean() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_labels": [3, 31]}, r"class_labels must be one or more of 0 ... 4 .*given 31"),
        ({"class_labels": []}, "given none"),
        ({"class_labels": [0.5]}, "class_labels must be integers"),
        ({"num_inference_steps": 1}, "at least 2"),
        ({"guidance_channels": "three"}, "guidance_channels is 'three'"),
        ({"guidance_channels": 9}, "1 ... 8"),
        ({"guidance_interval": (0.9, 0.1)}, "expected 0 <= start <= end <= 1"),
        ({"timestep_shift": -1}, "timestep_shift is -1"),
        ({"generator": [torch.Generator()]}, "1 generators for 2 class labels"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"height": 18}, "multiples of 4"),
        ({"latents": torch.zeros(2, 8, 5, 4)}, r"expected \(2, 8, 4, 4\)"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"not for \['noise'\]"),
        ({"class_labels": "user_01"}, "class_labels must be integers"),
        ({"class_labels": None}, "class_labels must be integers"),
        ({"class_labels": [True]}, "class_labels must be integers"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"guidance_scale": "4"}, "guidance_scale is '4'"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_channels": True}, "guidance_channels is True"),
        ({"guidance_interval": "x"}, "expected 0 <= start <= end <= 1"),
        ({"guidance_interval": (0, 0.5, 1)}, "expected 0 <= start <= end <= 1"),
        ({"timestep_shift": float("nan")}, "timestep_shift is nan"),
        ({"height": 0}, "height is 0"),
        ({"latents": [0.0]}, "latents must be a torch.Tensor; got list"),
        ({"generator": "5"}, "generator is '5'"),
    ],
)
def test_wrong_calls_get_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        make_pipe()(**{"class_labels": [1, 2], "num_inference_steps": 3} | arguments)
    assert "\n" not in str(error.value)


def test_save_and_load(tmp_path):
    pipe = make_pipe(shift=1 / 0.3)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["radiodiff_diffusers", "LightningDiTTransformer2DModel"]
    assert "LightningDiTPipeline" in (tmp_path / "README.md").read_text()
    again = DiffusionPipeline.from_pretrained(tmp_path)  # plain diffusers knows the class
    assert type(again) is LightningDiTPipeline
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.transformer, LightningDiTTransformer2DModel)
    options = dict(num_inference_steps=4, output_type="np")
    first, second = (p([1, 2], generator=generator(), **options).images for p in (pipe, again))
    assert np.array_equal(first, second)
    again.save_pretrained(tmp_path / "again")
    assert not any(str(tmp_path) in p.read_text() for p in (tmp_path / "again").rglob("*.json"))


def lora_pipe(scale):
    from peft import LoraConfig

    pipe = make_pipe()
    targets = pipe.transformer.lora_target_modules["attention"]
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=targets))
    torch.manual_seed(scale)
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1 * scale)
    return pipe


def sample(pipe):
    return pipe([1, 2], 4, generator=generator(), output_type="latent").images


def test_lora_on_the_pipeline(tmp_path):
    for number in (1, 2):
        trained = lora_pipe(number)
        adapter = adapter_of(trained.transformer, "transformer")
        LightningDiTPipeline.save_lora_weights(tmp_path / str(number), **adapter)
    adapted = sample(lora_pipe(1))
    pipe = make_pipe()
    base = sample(pipe)
    assert (adapted - base).abs().max() > 1e-2

    pipe.load_lora_weights(tmp_path / "1", adapter_name="one")
    assert (sample(pipe) - adapted).abs().max() < 1e-5  # the scale alpha / r = 3 came along
    pipe.load_lora_weights(tmp_path / "2", adapter_name="two")
    assert pipe.get_list_adapters() == {"transformer": ["one", "two"]}
    pipe.set_adapters(["one", "two"], adapter_weights=[1.0, 0.0])
    assert (sample(pipe) - adapted).abs().max() < 1e-4
    pipe.set_adapters(["one", "two"], adapter_weights=[0.5, 0.5])
    assert (sample(pipe) - adapted).abs().max() > 1e-3
    pipe.set_adapters("one")
    with pytest.raises(ValueError, match="still carries LoRA adapters"):
        pipe.save_pretrained(tmp_path / "pipe")

    pipe.fuse_lora(adapter_names=["one"])
    assert (sample(pipe) - adapted).abs().max() < 1e-4
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert (sample(pipe) - base).abs().max() < 1e-5
    pipe.save_pretrained(tmp_path / "pipe")

    trained.transformer.save_lora_adapter(tmp_path / "model")  # the model's own format, without a prefix
    pipe.load_lora_weights(tmp_path / "model")
    assert (sample(pipe) - sample(trained)).abs().max() < 1e-5


def test_wrong_lora_files_get_one_line(tmp_path):
    from safetensors.torch import save_file

    pipe = make_pipe()
    cases = {
        "transformer.blocks.9.attn.to_q": "has no layer blocks.9.attn.to_q",
        "base_model.model.blocks.0.attn.to_q": "saved by peft",
    }
    for number, (layer, message) in enumerate(cases.items()):
        tensors = {f"{layer}.lora_A.weight": torch.zeros(2, 48), f"{layer}.lora_B.weight": torch.zeros(48, 2)}
        save_file(tensors, tmp_path / f"{number}.safetensors")
        with pytest.raises(ValueError, match=message):
            pipe.load_lora_weights(tmp_path, weight_name=f"{number}.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a LoRA file"):
        pipe.load_lora_weights(tmp_path, weight_name="x.safetensors")
    with pytest.raises(ValueError, match="needs transformer_lora_layers"):
        pipe.save_lora_weights(tmp_path)


PUSH_AND_LOAD = """
import json, sys
import numpy as np, torch
from diffusers import DiffusionPipeline
from radiodiff_diffusers import LightningDiTPipeline

def predict(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe([3, 1], num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images

pipe = LightningDiTPipeline.from_pretrained(sys.argv[1])
pipe.push_to_hub("me/people")
ours, plain = LightningDiTPipeline.from_pretrained("me/people"), DiffusionPipeline.from_pretrained("me/people")
local = predict(pipe)
same = [bool(np.allclose(predict(one), local, atol=1e-4)) for one in (ours, plain)]
print(json.dumps({"same": same, "class": type(plain).__name__}))
"""


def test_it_is_pushed_to_the_hub_and_loaded_by_both_loaders(tmp_path):
    make_pipe().save_pretrained(tmp_path / "people")
    with HubStandIn() as hub:
        said = run_fresh(PUSH_AND_LOAD, hub.environment(tmp_path / "home"), tmp_path / "people")
        files = hub.repos["models/me/people"]
    assert said == {"same": [True, True], "class": "LightningDiTPipeline"}
    assert "LightningDiTPipeline" in files["README.md"].decode()
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert all(name.endswith((".json", ".safetensors", ".md", ".gitattributes")) for name in files)


def test_a_seed_is_a_generator():
    pipe = make_pipe()
    call = {"class_labels": [1, 2], "num_inference_steps": 3, "output_type": "pt"}
    seeded = pipe(**call, generator=5).images
    assert torch.equal(seeded, pipe(**call, generator=torch.Generator().manual_seed(5)).images)

"""RadioDiffPipeline on a model of milliseconds: any size, any batch, tiles, seeds, saving, and errors in one line."""

import logging

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from radiodiff_diffusers import ConstSDEScheduler, RadioDiffPipeline, RadioDiffUNet2DModel, Scene
from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS
from radiodiff_diffusers.scene import GainScale

torch.set_num_threads(1)


def make_pipeline(**options):
    torch.manual_seed(0)
    unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"]).eval()
    pipe = RadioDiffPipeline(unet=unet, scheduler=ConstSDEScheduler(), num_inference_steps=2, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def scene_of(height=32, width=40, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    y, x = rng.integers(8, height - 8), rng.integers(8, width - 8)
    mask[y : y + 6, x : x + 6] = True
    return Scene(mask, transmitter=(2, 3))


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def gains(output):
    return [one.gain_db for one in output.maps]


def test_a_scene_becomes_a_map(pipe):
    scene = scene_of()
    output = pipe(scene, generator=seeded())
    assert output.images[0].size == (40, 32) and output.images[0].mode == "L"
    gain = output.maps[0].gain_db
    assert gain.dtype == np.float32 and gain.shape == (32, 40) and np.isfinite(gain).all()
    assert (gain[scene.buildings] == GainScale.RADIOMAPSEER.floor_db).all()
    assert output.maps[0].std_db is None


def test_a_seed_decides_everything(pipe):
    scene = scene_of()
    first, again, other = (gains(pipe(scene, generator=g))[0] for g in (seeded(), seeded(), seeded(8)))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(gains(pipe(scene, generator=3))[0], gains(pipe(scene, generator=seeded(3)))[0])


def test_a_list_may_hold_seeds(pipe):
    scenes = [scene_of(seed=1), scene_of(seed=3)]
    seeds, numpy_seeds = gains(pipe(scenes, generator=[5, 6])), gains(pipe(scenes, generator=(np.int64(5), 6)))
    generators = gains(pipe(scenes, generator=[seeded(5), seeded(6)]))
    for result in (seeds, numpy_seeds):
        assert all(np.array_equal(one, other) for one, other in zip(result, generators, strict=True))


def test_the_batch_and_the_order_do_not_matter(pipe):
    scenes = [scene_of(seed=1), scene_of(24, 56, seed=2), scene_of(seed=3)]
    alone = [gains(pipe(scene, generator=seeded()))[0] for scene in scenes]
    together = gains(pipe(scenes, generator=seeded()))
    backwards = gains(pipe(scenes[::-1], generator=seeded()))[::-1]
    each = gains(pipe(scenes, generator=[seeded(), seeded(), seeded()]))
    scale = 49.58  # dB a network unit
    for k in range(3):
        for result in (together, backwards, each):
            assert np.abs(result[k] - alone[k]).max() < 1e-5 * scale


def test_several_maps_have_a_mean_and_a_spread(pipe):
    output = pipe([scene_of(), scene_of(seed=4)], num_maps=3, generator=seeded())
    assert len(output.maps) == 2 and output.samples[0].shape == (3, 32, 40)
    assert np.allclose(output.maps[1].gain_db, output.samples[1].mean(0), atol=1e-3)
    assert np.allclose(output.maps[1].std_db, output.samples[1].std(0, ddof=1), atol=1e-3)
    assert output.maps[0].std_db.max() > 0


def test_one_map_in_one_step_can_be_the_mean(pipe):
    scheduler = ConstSDEScheduler(final_denoise=False)
    sure = RadioDiffPipeline(pipe.unet, scheduler, num_inference_steps=1, mean_map=True)
    sure.set_progress_bar_config(disable=True)
    one, two = (gains(sure(scene_of(), generator=seed))[0] for seed in (1, 2))
    assert np.array_equal(one, two)
    two, three = (gains(sure(scene_of(), generator=seed, num_inference_steps=2))[0] for seed in (1, 2))
    assert not np.array_equal(two, three)


def test_samples_can_differ_in_where_the_walls_are(monkeypatch):
    config = {**RADIODIFF_UNET_PRESETS["test"], "condition_channels": ["buildings", "transmitter", "detour_loss"]}
    unet = RadioDiffUNet2DModel(**config).eval()
    scheduler = ConstSDEScheduler(final_denoise=False)
    pipe = RadioDiffPipeline(unet, scheduler, num_inference_steps=1, mean_map=True, wall_jitter=0.4)
    pipe.set_progress_bar_config(disable=True)
    mask = scene_of()
    outlined = mask.replace(polygons=((np.array([[10, 10], [20, 10], [20, 20], [10, 20]], float),),))
    output = pipe([mask, outlined, mask.crop(10, 4, 28, 26)], num_maps=4, generator=seeded())
    assert [one.shape for one in output.samples] == [(4, 32, 40), (4, 32, 40), (4, 26, 28)]
    assert output.maps[0].std_db.max() > 1e-3 and output.maps[2].std_db.max() > 1e-3
    assert output.maps[1].std_db.max() < 1e-3  # known outlines leave nothing open
    run, runs = pipe.unet.forward, []
    with monkeypatch.context() as patched:  # and then one map is computed, and not four
        patched.setattr(pipe.unet, "forward", lambda sample, *a, **k: runs.append(len(sample)) or run(sample, *a, **k))
        known = pipe([outlined, outlined], num_maps=4, generator=seeded())
        assert sum(runs) == 2
        pipe(outlined.replace(cars=np.roll(mask.buildings, 5)), num_maps=4)  # cars come as a mask
        assert sum(runs) == 2 + 4
        several = pipe(outlined, num_maps=4, num_inference_steps=2, generator=seeded())  # here noise is drawn
        assert sum(runs) == 2 + 4 + 2 * 4 and several.maps[0].std_db.max() > 1e-3
    assert np.abs(known.samples[0] - gains(pipe(outlined, generator=seeded(9)))[0]).max() < 1e-3
    assert known.samples[0].shape == (4, 32, 40) and known.maps[0].std_db.max() < 1e-3
    assert pipe(outlined, num_maps=4, output_type="latent").images.shape == (4, 1, 32, 40)
    alone = pipe(mask, num_maps=4, generator=seeded())
    assert np.abs(alone.samples[0] - output.samples[0]).max() < 1e-3
    other = pipe(mask, num_maps=4, generator=seeded(8))
    assert np.abs(alone.samples[0] - other.samples[0]).max() > 1e-3
    assert pipe(mask, generator=seeded()).maps[0].std_db is None
    with pytest.raises(ValueError, match="2 generators for 1 scenes"):
        pipe([mask], num_maps=4, generator=[seeded(), seeded()])


def test_samples_can_differ_by_the_error_that_is_expected():
    config = {**RADIODIFF_UNET_PRESETS["test"], "condition_channels": ["buildings", "transmitter", "detour_loss"]}
    unet = RadioDiffUNet2DModel(**config, error_map=True).eval()
    scheduler = ConstSDEScheduler(final_denoise=False)
    pipe = RadioDiffPipeline(unet, scheduler, num_inference_steps=1, mean_map=True, wall_jitter=0.4)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():  # small errors, so that no sample is clipped
        unet.noise_decoder.conv_out.weight.mul_(0.1)
        unet.noise_decoder.conv_out.bias.fill_(-4.0)
    mask = scene_of()
    outlined = mask.replace(polygons=((np.array([[10, 10], [20, 10], [20, 20], [10, 20]], float),),))
    one, several = pipe(outlined).maps[0], pipe([outlined, mask], num_maps=5, generator=seeded())
    assert several.samples[0].shape == several.samples[1].shape == (5, 32, 40)
    # known outlines: one map, and samples round it as far as the error says
    planes = pipe.prepare_conditions(outlined)[0][None]
    with torch.inference_mode():
        error = unet(torch.zeros(1, 1, *mask.shape), 1.0, planes, return_error=True).error[0, 0].numpy()
    free = ~mask.buildings & (np.abs(one.gain_db + 97.42) < 40)  # far enough from the ends of the scale
    assert np.abs(several.maps[0].gain_db - one.gain_db)[free].max() < 1e-3
    assert np.allclose(several.maps[0].std_db[free], 2.15 * 49.58 * error[free], rtol=1e-3)
    # a mask leaves the walls open besides
    assert not np.allclose(several.maps[1].gain_db, one.gain_db, atol=1e-3)
    alone = pipe(mask, num_maps=5, generator=seeded())
    assert np.abs(alone.samples[0] - several.samples[1]).max() < 1e-3
    # planes, tiles
    assert np.allclose(pipe(planes, num_maps=5).maps[0].std_db[free], several.maps[0].std_db[free], rtol=1e-2)
    assert pipe(scene_of(64, 80), num_maps=2, tile_size=32, generator=1).maps[0].std_db.min() >= 0
    with pytest.raises(ValueError, match="t = 1"):
        unet(torch.zeros(1, 1, *mask.shape), 0.5, planes, return_error=True)


def test_output_types(pipe):
    scenes = [scene_of(), scene_of(seed=5)]
    array = pipe(scenes, output_type="np", generator=1).images
    tensor = pipe(scenes, output_type="pt", generator=1).images
    latent = pipe(scenes, output_type="latent", generator=1)
    assert array.shape == (2, 32, 40, 1) and tensor.shape == (2, 1, 32, 40) and latent.images.shape == (2, 1, 32, 40)
    assert np.allclose(array[..., 0], tensor[:, 0].numpy()) and latent.maps is None
    assert 0 <= array.min() and array.max() <= 1
    images, maps, samples = pipe(scenes, generator=1, return_dict=False)
    assert len(images) == len(maps) == len(samples) == 2
    assert isinstance(pipe([scenes[0], scene_of(24, 24)], output_type="np").images, list)


def test_a_condition_tensor_may_take_the_scene_s_place(pipe):
    scene = scene_of()
    planes = torch.from_numpy(np.stack([scene.plane(c) for c in pipe.unet.config.condition_channels]))
    from_planes = pipe(planes[None], generator=1).samples[0][0]
    from_scene = pipe(scene, generator=1).samples[0][0]
    assert np.allclose(from_planes[~scene.buildings], from_scene[~scene.buildings], atol=1e-4)


def test_latents_are_taken_as_given(pipe):
    scene, latents = scene_of(), torch.randn(1, 1, 32, 40, generator=seeded(9))
    ode = make_pipeline()
    ode.scheduler = ConstSDEScheduler(solver="ode")
    first = ode(scene, latents=latents, output_type="latent").images
    assert torch.equal(first, ode(scene, latents=latents, output_type="latent", generator=3).images)
    with pytest.raises(ValueError, match="latents have the shape"):
        pipe(scene, latents=latents[..., :8])


def test_one_tile_is_the_whole_map(pipe):
    scene = scene_of()
    assert np.array_equal(gains(pipe(scene, generator=1, tile_size=64))[0], gains(pipe(scene, generator=1))[0])


@pytest.mark.parametrize("size", [(64, 64), (70, 45), (33, 100)])
def test_tiles_cover_maps_of_any_size_without_seams(pipe, size):
    whole = scene_of(*size)
    output = pipe(whole, generator=1, tile_size=32, tile_overlap=16)
    assert output.maps[0].shape == size and np.isfinite(output.maps[0].gain_db).all()


def test_blending_is_exact_for_a_model_that_works_pixel_by_pixel(pipe, monkeypatch):
    scene = scene_of(70, 90)

    def pixelwise(latents, condition, num_maps, noises, progress, *_):
        return torch.tanh(latents + condition[:, :1])

    monkeypatch.setattr(pipe, "denoise", pixelwise)
    tiled = pipe(scene, generator=1, tile_size=32).samples[0]
    assert np.abs(tiled - pipe(scene, generator=1).samples[0]).max() < 1e-3


def test_a_tile_knows_the_true_transmitter(pipe, monkeypatch):
    seen = []
    original = pipe.unet.encode_condition
    monkeypatch.setattr(pipe.unet, "encode_condition", lambda planes: seen.append(planes.clone()) or original(planes))
    scene = scene_of(64, 64)
    pipe(scene, generator=1, tile_size=32)
    assert len(seen) == 9
    assert sum(int((planes[:, 1] == 1).any()) for planes in seen) < 9  # most tiles do not hold it


def test_an_autoencoder_s_maps_may_have_any_size():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(1, 1, ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2, (8, 8), 1, latent_channels=2,
                        norm_num_groups=4, sample_size=32, scaling_factor=0.3)  # fmt: skip
    unet = RadioDiffUNet2DModel(
        **{**RADIODIFF_UNET_PRESETS["test"], "in_channels": 2, "patch_size": 1, "sample_size": 16}
    )
    pipe = RadioDiffPipeline(unet=unet.eval(), scheduler=ConstSDEScheduler(), vae=vae.eval(), num_inference_steps=1)
    pipe.set_progress_bar_config(disable=True)
    for size in ((32, 32), (33, 47)):
        assert pipe(scene_of(*size), generator=1).maps[0].shape == size
    assert pipe(scene_of(33, 47), output_type="latent").images.shape == (1, 2, 17, 24)
    assert pipe(scene_of(64, 80), generator=1, tile_size=32).maps[0].shape == (64, 80)


def test_callbacks_see_and_change_the_latents(pipe):
    steps = []

    def halve(pipeline, step, time, kwargs):
        steps.append((step, float(time)))
        return {"latents": kwargs["latents"] * 0}

    changed = pipe(scene_of(), generator=1, callback_on_step_end=halve)
    assert [step for step, _ in steps] == list(range(pipe.num_timesteps))
    assert not np.array_equal(gains(changed)[0], gains(pipe(scene_of(), generator=1))[0])


def test_a_callback_can_stop_the_run(pipe):
    steps = []

    def stop(pipeline, step, time, kwargs):
        steps.append(step)
        pipeline._interrupt = True
        return {}

    pipe(scene_of(), callback_on_step_end=stop)
    assert steps == [0]


def test_saved_and_loaded_it_gives_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = RadioDiffPipeline.from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.num_inference_steps == 2 and loaded.vae is None
    assert np.allclose(gains(loaded(scene_of(), generator=1))[0], gains(pipe(scene_of(), generator=1))[0], atol=1e-3)
    half = RadioDiffPipeline.from_pretrained(tmp_path / "pipe", dtype=torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    assert np.isfinite(gains(half(scene_of(), generator=1))[0]).all()


def test_casts_that_are_right_are_not_warned_against():
    """diffusers warns at every cast that a model would lose precision, and of float16 that a CPU cannot run it."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("diffusers").addHandler(handler)
    try:
        small = {"block_out_channels": [8], "norm_num_groups": 4, "in_channels": 1, "out_channels": 1}
        half = make_pipeline().to(torch.float16).to("cpu")
        half.vae = AutoencoderKL(**small).to(torch.float16)
        half.unet.to(dtype=torch.bfloat16)
        assert said == []
        other = type("Other", (AutoencoderKL,), {"_keep_in_fp32_modules": ["encoder"]})
        other(**small).to(torch.float16)
        assert len(said) == 1 and "Other that should be kept in float32" in said[0]  # where it is true it is said
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    half = make_pipeline().to(torch.float16)
    assert {p.dtype for p in half.unet.parameters()} == {torch.float16}
    assert np.isfinite(gains(half(scene_of(), generator=1))[0]).all()


def test_indoor_scale():
    pipe = make_pipeline(gain_scale="indoor")
    scene = scene_of()
    radio_map = pipe(scene, generator=1).maps[0]
    assert radio_map.scale == GainScale.INDOOR and (radio_map.gain_db[scene.buildings] == -160).all()


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ({"scene": "city.png"}, "expected a Scene"),
        ({"scene": []}, "no scene was given"),
        ({"scene": torch.zeros(1, 2, 32, 32)}, "condition tensor must be"),
        ({"scene": torch.full((1, 3, 32, 32), torch.nan)}, "not finite"),
        ({"num_maps": 0}, "num_maps must be at least 1"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1"),
        ({"output_type": "jpg"}, "expected one of pil"),
        ({"generator": [torch.Generator()] * 3}, "3 generators for 1 scenes"),
        ({"generator": "seven"}, "generator must be a torch.Generator, a seed, or a list"),
        ({"latents": np.zeros((1, 1, 32, 40))}, "latents must be a torch.Tensor"),
        ({"latents": torch.zeros(2, 1, 32, 40)}, "2 latents for 1 maps"),
        # above a megapixel tiles have the model's own size, 32
        ({"scene": torch.zeros(1, 3, 1040, 1040), "tile_overlap": 32}, "more than half of a tile's 32 pixels"),
        ({"tile_size": 1}, "tile_size is 1"),
        ({"tile_size": 16, "tile_overlap": 12}, "more than half"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "not for"),
    ],
)
def test_wrong_calls_are_one_line(pipe, call, line):
    with pytest.raises(ValueError, match=line) as caught:
        pipe(**{"scene": scene_of(), **call})
    assert "\n" not in str(caught.value)


def test_a_model_with_unknown_channels_does_not_load(pipe, tmp_path):
    unet = RadioDiffUNet2DModel(**{**RADIODIFF_UNET_PRESETS["test"], "condition_channels": ["buildings", "altitude"]})
    with pytest.raises(ValueError, match="unknown condition channel 'altitude'; known"):
        RadioDiffPipeline(unet=unet, scheduler=ConstSDEScheduler())


def save_adapter(folder, channels, seed):
    """A random adapter of the test pipeline's U-Net that sees other channels of a scene."""
    from peft import LoraConfig

    from radiodiff_diffusers.lora import adapter_of

    unet = make_pipeline().unet
    unet.add_adapter(LoraConfig(r=2, target_modules=r"conv_in|.*downsample"))
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=seeded(seed))
    RadioDiffPipeline.save_lora_weights(folder, **adapter_of(unet, "unet", condition_channels=channels))


def test_an_adapter_may_see_other_channels_than_its_base(tmp_path):
    pipe, scene = make_pipeline(), scene_of()
    base = list(pipe.unet.config.condition_channels)
    other = [{base[0]: "visibility"}.get(name, name) for name in base]
    save_adapter(tmp_path / "other", other, 1)
    save_adapter(tmp_path / "same", None, 2)
    before = gains(pipe(scene, generator=1))[0]

    pipe.load_lora_weights(tmp_path / "other", adapter_name="other")
    assert pipe.condition_channels == other
    adapted = gains(pipe(scene, generator=1))[0]
    planes = torch.from_numpy(np.stack([scene.plane(name) for name in other]))[None]
    assert np.abs(pipe(planes, generator=1).maps[0].gain_db - adapted)[~scene.buildings].max() < 1e-3
    assert np.abs(adapted - before).max() > 0.1
    pipe.disable_lora()
    assert pipe.condition_channels == base and np.array_equal(gains(pipe(scene, generator=1))[0], before)
    pipe.enable_lora()

    pipe.load_lora_weights(tmp_path / "same", adapter_name="same")
    pipe.set_adapters(["same", "other"])
    with pytest.raises(ValueError, match="see different channels"):
        pipe(scene)
    pipe.set_adapters("same")
    assert pipe.condition_channels == base
    pipe.delete_adapters("same")
    pipe.set_adapters("other")

    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert pipe.condition_channels == other
    pipe.save_pretrained(tmp_path / "fused")
    fused = RadioDiffPipeline.from_pretrained(tmp_path / "fused")
    assert np.abs(gains(fused(scene, generator=1))[0] - adapted).max() < 0.05

    taken_off = make_pipeline()
    taken_off.load_lora_weights(tmp_path / "other", adapter_name="one")
    taken_off.unload_lora_weights()
    taken_off.load_lora_weights(tmp_path / "same", adapter_name="one")  # another one of that name
    assert taken_off.condition_channels == base

    again = make_pipeline()
    again.load_lora_weights(tmp_path / "other")
    again.fuse_lora()
    again.unfuse_lora()
    again.unload_lora_weights()
    assert again.condition_channels == base
    assert np.abs(gains(again(scene, generator=1))[0] - before).max() < 0.05

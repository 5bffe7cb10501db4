"""The small network that gives the mean map: what it starts from, what sizes it takes, and that it learns."""

import numpy as np
import pytest
import torch

from radiodiff_diffusers import ConstSDEScheduler, MeanMapModel, RadioDiffPipeline, RadioDiffUNet2DModel, Scene
from radiodiff_diffusers.engines import dominant_path
from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MeanMapModel(widths=[8, 16, 16]).eval()


def scene_of(height=48, width=60):
    buildings = np.zeros((height, width), bool)
    buildings[10:20, 22:34] = buildings[30:40, 8:20] = True
    return Scene(buildings, transmitter=(5.0, 6.0))


def test_a_fresh_one_says_what_the_physics_say(model):
    pipe = RadioDiffPipeline(
        RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"]), ConstSDEScheduler(), num_inference_steps=1,
        mean_map=True, mean_model=model,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    scene = scene_of()
    free = ~scene.buildings
    radio_map = pipe(scene).maps[0]
    np.testing.assert_allclose(radio_map.gain_db[free], dominant_path(scene).gain_db[free], atol=0.05)
    assert (radio_map.gain_db[scene.buildings] == -147).all()
    tiled = pipe(scene, tile_size=32).maps[0]
    np.testing.assert_allclose(tiled.gain_db, radio_map.gain_db, atol=0.01)


def test_it_learns_what_the_planes_tell(model):
    """The correction that is to be found depends on the place; one that is the same everywhere is no help."""
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(2, 4, 32, 32, generator=generator) * 2 - 1
    wanted = model(planes).detach() + 0.2 * planes[:, :1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = (model(planes) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1 * (0.2 * planes[:, :1]).square().mean()


def test_the_first_layer_may_see_single_patches():
    with pytest.raises(ValueError, match="an odd conv_in_kernel from 1; got 2"):
        MeanMapModel(conv_in_kernel=2)
    model = MeanMapModel(patch_size=8, widths=[8, 16, 16], conv_in_kernel=1)
    torch.nn.init.normal_(model.conv_out.weight)
    planes = torch.rand(1, 4, 40, 48) * 2 - 1
    folded = torch.nn.functional.pixel_unshuffle(planes, 8)
    seen = []
    model.conv_in.register_forward_pre_hook(lambda _, given: seen.append(given[0][..., :5, :6]))
    assert model(planes).shape == (1, 1, 40, 48)
    assert torch.equal(seen[0], folded) and model.conv_in.weight.shape == (8, 256, 1, 1)


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (8, 100)])
def test_any_size_and_every_map_on_its_own(model, size):
    torch.nn.init.normal_(model.conv_out.weight, std=0.05)
    planes = torch.rand(3, 4, *size) * 2 - 1
    with torch.no_grad():
        together = model(planes)
        alone = torch.cat([model(one[None]) for one in planes])
    assert together.shape == (3, 1, *size)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_it_is_saved_with_its_pipeline_and_loads_again(model, tmp_path):
    torch.nn.init.normal_(model.conv_out.weight, std=0.05)
    unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"])
    pipe = RadioDiffPipeline(unet, ConstSDEScheduler(), num_inference_steps=1, mean_map=True, mean_model=model)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path)
    again = RadioDiffPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.mean_model, MeanMapModel)
    np.testing.assert_array_equal(again(scene_of()).maps[0].gain_db, pipe(scene_of()).maps[0].gain_db)
    without = RadioDiffPipeline.from_pretrained(tmp_path, mean_model=None)
    assert without.mean_model is None


def test_several_maps_are_spread_by_the_error_that_it_learnt():
    """Where the second look tells another loss than the first, and only there, the maps it learns from are wrong."""
    torch.manual_seed(0)
    channels = ["footprint", "coarse_loss", "coarse_turn", "log_distance"]
    model = MeanMapModel(channels, "coarse_loss", widths=[8, 16, 16], error_map=True, second_look="detour_loss")
    planes = torch.zeros(2, 5, 32, 32)
    planes[:, 4, :, 16:] = 0.5
    wrong = torch.where(planes[:, 4:] > 0, 0.3, 0.01)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        error = model(planes, return_error=True)[1]
        (1.5 * (1 + (wrong / error).square() / 2).log() + error.log()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert error[..., 20:].mean() > 5 * error[..., :12].mean()

    unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"])
    pipe = RadioDiffPipeline(unet, ConstSDEScheduler(), num_inference_steps=1, mean_map=True, mean_model=model.eval())
    pipe.set_progress_bar_config(disable=True)
    scene = scene_of()
    single, several = pipe(scene).maps[0], pipe(scene, num_maps=6, generator=0)
    assert several.samples[0].shape == (6, *scene.shape) and single.std_db is None
    planes = torch.stack(pipe.prepare_conditions([scene], model.error_channels))
    expected = model(planes, return_error=True)[1][0, 0].detach().numpy() * 49.58 * 4.3 / 2
    sure = several.maps[0].gain_db > -140  # nothing of a sample was cut off
    sure &= single.gain_db + 3 * expected < -48
    np.testing.assert_allclose(several.maps[0].std_db[sure], expected[sure], rtol=0.02)
    np.testing.assert_allclose(several.maps[0].gain_db[sure], single.gain_db[sure], atol=0.02)
    again = pipe(scene, num_maps=6, generator=0, tile_size=32)
    assert np.isfinite(again.maps[0].std_db).all() and again.samples[0].shape == (6, *scene.shape)
    with pytest.raises(ValueError, match="error_map"):
        MeanMapModel(widths=[8, 16, 16])(planes[:, :4], return_error=True)
    with pytest.raises(ValueError, match="being footprint, coarse_loss, coarse_turn, log_distance, detour_loss"):
        model(planes[:, :4], return_error=True)


def test_beside_an_autoencoder_tiles_are_cut_by_pixels(model):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=4, latent_channels=3,
    )  # fmt: skip
    unet = RadioDiffUNet2DModel(**{**RADIODIFF_UNET_PRESETS["test"], "in_channels": 3})
    pipe = RadioDiffPipeline(
        unet, ConstSDEScheduler(), vae, num_inference_steps=1, mean_map=True, mean_model=model
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    scene = scene_of(66, 66)
    whole, tiled = pipe(scene).maps[0], pipe(scene, tile_size=32).maps[0]
    np.testing.assert_allclose(tiled.gain_db, whole.gain_db, atol=0.05)


def test_a_model_that_tells_no_errors_is_not_asked_for_them(model):
    unet = RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"])
    pipe = RadioDiffPipeline(unet, ConstSDEScheduler(), num_inference_steps=1, mean_map=True, mean_model=model)
    with pytest.raises(ValueError, match="ask for one"):
        pipe(scene_of(), num_maps=4)


def test_scenes_of_one_city_share_their_walls(model, monkeypatch):
    from radiodiff_diffusers.engines import dominant_paths

    pipe = RadioDiffPipeline(
        RadioDiffUNet2DModel(**RADIODIFF_UNET_PRESETS["test"]), ConstSDEScheduler(), num_inference_steps=1,
        mean_map=True, mean_model=model,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    city, other = scene_of(), Scene(scene_of().buildings[::-1].copy(), (5.0, 6.0))
    places = [(5.0, 6.0), (50.0, 40.0), (45.0, 8.0)]
    alone = [pipe(city.replace(transmitter=place)).maps[0].gain_db for place in places] + [pipe(other).maps[0].gain_db]
    prepared, calls = dominant_paths.prepare, []
    monkeypatch.setattr(dominant_paths, "prepare", lambda scene: calls.append(1) or prepared(scene))
    scenes = [Scene(city.buildings.copy(), place) for place in places] + [other.replace()]
    pipe(scenes[0].replace())  # known from the calls before
    assert not calls
    pipe._kept_walls.clear()
    for one, gain in zip(pipe(scenes).maps, alone, strict=True):
        np.testing.assert_allclose(one.gain_db, gain, atol=1e-3)
    assert len(calls) == 2 == len(pipe._kept_walls)


def test_wrong_ones_are_one_line(model):
    with pytest.raises(ValueError, match="the planes being footprint, detour_loss"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="physics_channel 'reflected_loss' is none of"):
        MeanMapModel(physics_channel="reflected_loss")
    with pytest.raises(ValueError, match="three widths"):
        MeanMapModel(widths=[8, 16])

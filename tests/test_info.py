"""The architecture page: counts against torch's own, FLOPs and memory against values worked out by hand, the page."""

import argparse
import json
import re
from xml.etree import ElementTree

import pytest

torch = pytest.importorskip("torch")

from diffusers import AutoencoderKL  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from radiodiff_diffusers import ConstSDEScheduler, RadioDiffPipeline, RadioDiffUNet2DModel  # noqa: E402
from radiodiff_diffusers.commands import info as command  # noqa: E402
from radiodiff_diffusers.models.presets import RADIODIFF_UNET_PRESETS  # noqa: E402
from radiodiff_diffusers.reports import architecture  # noqa: E402
from radiodiff_diffusers.reports.architecture import docstring_arguments, inspect_model, load_model, print_info  # noqa: E402
from radiodiff_diffusers.reports.architecture_page import write_page  # noqa: E402
from radiodiff_diffusers.reports.svg import Diagram  # noqa: E402


def small_vae():
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    return AutoencoderKL(
        1, 1, **blocks, block_out_channels=[8, 8, 16], latent_channels=3, norm_num_groups=4, scaling_factor=0.3
    )


@pytest.fixture(scope="module")
def latent_pipeline():
    config = {**RADIODIFF_UNET_PRESETS["test"], "in_channels": 3, "patch_size": 1, "sample_size": 16}
    return RadioDiffPipeline(RadioDiffUNet2DModel(**config), ConstSDEScheduler(), small_vae())


@pytest.fixture(scope="module")
def seen(latent_pipeline):
    return inspect_model(latent_pipeline, 64, 96, steps=2, name="small")


class Two(nn.Module):
    """Two linear layers, the second called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(100, 1000, bias=False), nn.Linear(1000, 1000, bias=False)

    def forward(self, x):
        return self.second(self.second(self.first(x)))


def test_flops_calls_shapes_and_memory_worked_out_by_hand(monkeypatch):
    model = Two()
    monkeypatch.setattr(architecture, "_one_prediction", lambda *_: lambda: model(torch.zeros(7, 100)))
    info = inspect_model(model, 64, 64)
    assert info.parameters == 100 * 1000 + 1000 * 1000 and info.bytes == 4 * info.parameters
    first, second = info.components["model"].children
    assert first.flops == 2 * 7 * 100 * 1000 and second.flops == 2 * 2 * 7 * 1000 * 1000
    assert info.flops == info.components["model"].flops == first.flops + second.flops
    assert (first.calls, second.calls, second.shape) == (1, 2, (7, 1000))
    # At most the input of a layer and its output live at once; the first input too where it is made inside.
    assert 2 * 7 * 1000 * 4 <= info.peak_bytes <= 2 * 7 * 1000 * 4 + 7 * 100 * 4


def test_the_pipeline_is_counted_and_run(seen, latent_pipeline):
    parts = latent_pipeline.components
    assert set(seen.components) == {"unet", "vae"} and seen.steps == 3
    for name, part in seen.components.items():
        assert part.parameters == sum(p.numel() for p in parts[name].parameters())
        assert part.parameters >= sum(child.parameters for child in part.children)
    assert seen.components["unet"].calls == 3 and seen.components["unet"].shape == (1, 6, 16, 24)
    # Parts that are called without their whole count for it: the condition encoder, the autoencoder's decoder.
    assert seen.flops == sum(part.flops for part in seen.components.values())
    decoder = next(part for part in seen.components["vae"].children if part.name == "vae.decoder")
    assert decoder.shape == (1, 1, 64, 96) and 0 < decoder.flops <= seen.components["vae"].flops
    assert next(p for p in seen.components["vae"].children if p.name == "vae.encoder").calls == 0
    # The largest single plane alone, at full resolution in the decoder, is a bound from below.
    assert seen.peak_bytes > 8 * 64 * 96 * 4


def test_hooks_are_gone_afterwards(seen, latent_pipeline):
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in latent_pipeline.unet.modules())


def test_options_have_their_meaning_from_the_docstrings(seen):
    unet = {name: meaning for name, _, meaning in seen.configs["unet"]}
    assert unet["base_channels"] == "Width of the first level." and all(unet.values()), unet
    scheduler = {name: (value, meaning) for name, value, meaning in seen.configs["scheduler"]}
    assert scheduler["eps"][0] == 1e-4 and "smallest time" in scheduler["eps"][1]
    assert {name: meaning for name, _, meaning in seen.configs["vae"]}["latent_channels"]


def test_docstrings_in_both_styles():
    text = """Does.

    Args:
        a (`int`, defaults to 1): The first,
            in two lines.
        low, high (`float`): Both.

    Returns:
        b (`int`): not an argument.
    """
    import inspect

    assert docstring_arguments(inspect.cleandoc(text)) == {
        "a": "The first, in two lines.",
        "low": "Both.",
        "high": "Both.",
    }
    parameters = "Parameters:\n    c (`str`, *optional*):\n        On its own line."
    assert docstring_arguments(parameters) == {"c": "On its own line."} and docstring_arguments("Nothing.") == {}


def test_the_page_is_made_of_the_model(seen, tmp_path):
    page = write_page(seen, tmp_path / "page.html")
    text = page.read_text()
    pictures = sorted((tmp_path / "page_figures").glob("*.svg"))
    assert [p.stem for p in pictures] == ["modules", "prediction", "training"] and text.count("<svg") == 3
    for picture in pictures:
        words = " ".join(ElementTree.parse(picture).getroot().itertext())
        assert {"modules": "drift_decoder", "prediction": "vae.decoder", "training": "x 0.3"}[picture.stem] in words
    # Links that one may follow are fine (papers in docstrings); nothing is fetched to show the page.
    assert not re.findall(r'src=[\'"](?!data:)', text) and not re.findall("<script|<link|@import", text)
    for part in ("pair_loss", "e^√t", "Width of the first level.", "3 evaluations of the network", "0.0001"):
        assert part in text


def test_single_models_have_pages_too(tmp_path):
    vae = inspect_model(small_vae(), 32, 32)
    assert vae.components["model"].calls == 1 and vae.components["model"].shape == (1, 1, 32, 32)
    assert "PatchGAN" in write_page(vae, tmp_path / "vae.html").read_text()
    unknown = inspect_model(nn.Linear(3, 4), 32, 32)
    assert unknown.parameters == 16 and "no sample input is known for Linear" in print_info(unknown)


def test_loading_folders_presets_and_errors(tmp_path, latent_pipeline):
    latent_pipeline.save_pretrained(tmp_path / "pipe")
    assert isinstance(load_model(str(tmp_path / "pipe")), RadioDiffPipeline)
    assert isinstance(load_model(str(tmp_path / "pipe" / "unet")), RadioDiffUNet2DModel)
    assert isinstance(load_model(str(tmp_path / "pipe" / "vae")), AutoencoderKL)
    assert load_model("test").unet.config.base_channels == RADIODIFF_UNET_PRESETS["test"]["base_channels"]
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(json.dumps({"_class_name": "Magic"}))
    (tmp_path / "empty").mkdir()
    for name, message in (
        (tmp_path / "odd", "a Magic, which neither"),
        (tmp_path / "empty", "neither model_index.json nor config.json"),
        ("nowhere", "no such folder"),
    ):
        with pytest.raises(ValueError, match=message) as failure:
            load_model(str(name))
        assert "\n" not in str(failure.value)


def test_the_published_model_has_its_autoencoder():
    """225 M parameters with 55 M of the autoencoder; without it `info base` would run the U-Net on pixels."""
    pipe = load_model("base")
    assert sum(p.numel() for p in pipe.unet.parameters()) == 223_842_366
    assert pipe.vae_scale_factor == 4 and sum(p.numel() for p in pipe.vae.parameters()) == 55_307_453
    assert pipe.vae.config.scaling_factor == 0.3 and load_model("test").vae is None


def test_attention_is_counted():
    """Both products of 16 queries with 16 keys of 8 numbers each, and nothing else."""
    tokens = torch.zeros(1, 2, 16, 8)
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=architecture.ATTENTION_ON_CPU) as counter:
        torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
    assert counter.get_total_flops() == 2 * 2 * 2 * 16 * 16 * 8


@pytest.mark.slow
def test_the_published_model_costs_what_it_costs():
    """A U-Net step with its condition is 146 GFLOP at 256 x 256, decoding 670 (multiply and add: 2)."""
    from radiodiff_diffusers.reports.architecture_page import call_groups

    info = inspect_model(load_model("base"), 256, 256, steps=1)
    cost = {call.name: call.flops / 1e9 for call, *_ in call_groups(info)}
    assert cost["unet.encoder"] + cost["unet: prepared"] + cost["unet"] == pytest.approx(146, rel=0.01)
    assert cost["vae.decoder"] == pytest.approx(670, rel=0.01)


@pytest.mark.parametrize("solver", ["sde", "ode"])
def test_the_equations_are_what_the_scheduler_does(solver, latent_pipeline, tmp_path):
    """The step as the page writes it, evaluated, is the scheduler's step."""
    scheduler = ConstSDEScheduler(solver=solver)
    latent_pipeline = RadioDiffPipeline(latent_pipeline.unet, scheduler, latent_pipeline.vae)
    text = write_page(inspect_model(latent_pipeline, 64, 64, steps=1), tmp_path / "page.html").read_text()
    formula = re.search(r"<code>x = ([^<]*)</code>", text)[1]
    product = {name: f" * {name}" for name in ("z", "x0", "(t")}
    for written, python in {
        "√t": "t**0.5",
        "√": "sqrt",
        " ε": " * e",
        **{f" {k}": v for k, v in product.items()},
    }.items():
        formula = formula.replace(written, python)
    x0, e, z = (torch.randn(1, 1, 4, 4) for _ in range(3))
    scheduler.set_timesteps(4)
    t, later = float(scheduler.timesteps[0]), float(scheduler.timesteps[1])
    x_t, s = (1 - t) * x0 + t**0.5 * e, t - later
    output = torch.cat([-x0, e], dim=1)
    step = scheduler.step(output, scheduler.timesteps[0], x_t, variance_noise=z, return_dict=False)[0]
    assert torch.allclose(step, eval(formula, {"sqrt": lambda v: v**0.5}, locals()), atol=1e-5), formula


def test_the_command(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["test", "--size", "48x32", "--steps", "1", "--html", str(tmp_path / "a" / "page.html")]
    assert command.run(parser.parse_args(words)) == 0
    printed = capsys.readouterr().out
    assert "for one prediction of 48 x 32" in printed and "RadioDiffUNet2DModel" in printed
    assert (tmp_path / "a" / "page.html").is_file()
    for size in ("big", "1x2x3", "8"):
        with pytest.raises(ValueError, match="size"):
            command.run(parser.parse_args(["test", "--size", size]))
    with pytest.raises(ValueError, match="--steps"):
        command.run(parser.parse_args(["test", "--steps", "0"]))


def test_text_in_a_diagram_is_escaped_and_cut(tmp_path):
    diagram = Diagram()
    diagram.box(0, 0, 60, 40, "<a & b>", ("a very long note that does not fit",))
    root = ElementTree.parse(diagram.write(tmp_path / "d.svg", "x < y")).getroot()
    words = list(root.itertext())
    assert (
        "<a & b>" in words
        and "x < y" in words
        and not any(word.startswith("a very long note that does") for word in words)
    )

"""LightningDiT against numbers recorded from the original, and the manners expected of a diffusers model."""

import json
import logging

import pytest
import torch
from golden_weights import GOLDENS, draw, filled
from safetensors.torch import load_file

from radiodiff_diffusers.convert.lightningdit import lightningdit_from_file, lightningdit_from_original
from radiodiff_diffusers.models.lightning_dit import (
    LightningDiTTransformer2DModel,
    lightning_dit_config,
    sincos_position_embedding,
)

SMALL = dict(sample_size=4, in_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=16, num_classes=5)


def original_state_dict(keys):
    """An original state dict without its position tables."""
    return {name: filled(name, shape) for name, (how, shape) in keys.items() if how == "fill"}


def golden_case(name):
    manifest = json.loads((GOLDENS / "lightningdit_manifest.json").read_text())
    return original_state_dict(manifest["keys"][name]), manifest["configs"][name]


def small_model(**changes):
    torch.manual_seed(0)
    model = LightningDiTTransformer2DModel(**SMALL | changes)
    for parameter in model.parameters():  # a fresh model gives zero: no test could fail
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def small_inputs():
    return draw(1, 2, 4, 4, 4), torch.tensor([0.2, 0.7]), torch.tensor([1, 5])


@pytest.mark.parametrize(
    ("case", "seed", "shape", "time", "labels"),
    [
        ("b1", 501, (2, 32, 8, 8), [0.1, 0.9], [3, 31]),
        ("p2_qk", 502, (2, 16, 16, 16), [0.0, 0.5], [0, 30]),
    ],
)
def test_same_function_as_the_original(case, seed, shape, time, labels):
    state_dict, config = golden_case(case)
    model = lightningdit_from_original(state_dict, num_heads=config["num_heads"])
    with torch.no_grad():
        output = model(draw(seed, *shape), torch.tensor(time), torch.tensor(labels)).sample
    expected = load_file(GOLDENS / "lightningdit.safetensors")[case]
    assert (output - expected).abs().max() < 1e-5
    assert model.config.num_classes == 31 and model.config.qk_norm == config["use_qknorm"]


@pytest.mark.parametrize("case", ["no_shift", "layer_norm_qk", "gelu", "no_rope", "learn_sigma_p2", "ratio"])
def test_same_function_for_every_option(case):
    """Options no published model uses, recorded from the original at a small size."""
    entry = json.loads((GOLDENS / "lightningdit_options_manifest.json").read_text())[case]
    config = entry["config"]
    state_dict = original_state_dict(entry["keys"])
    rotary = False if case == "no_rope" else None
    model = lightningdit_from_original(state_dict, num_heads=config["num_heads"], rotary=rotary)
    size = config["input_size"]
    with torch.no_grad():
        output = model(draw(entry["seed"], 2, 8, size, size), torch.tensor([0.3, 0.8]), torch.tensor([1, 5])).sample
    assert (output - load_file(GOLDENS / "lightningdit_options.safetensors")[case]).abs().max() < 1e-5


def test_checkpoint_forms_give_the_same_model(tmp_path):
    """`ema` without prefix, `model` wrapped for several devices; a file; heads read from the tables."""
    state_dict, config = golden_case("b1")
    side, dim = config["input_size"], config["hidden_size"]
    tables = {"pos_embed": sincos_position_embedding(side, side, dim)[None]}
    angles = torch.zeros(side * side, dim // config["num_heads"])
    other = {name: torch.zeros_like(t) for name, t in state_dict.items()}
    checkpoint = {
        "model": {f"module.module.{k}": v for k, v in other.items()},
        "ema": state_dict | tables,
        "opt": {"state": {}},
    }
    torch.save(checkpoint, tmp_path / "0080000.pt")
    model = lightningdit_from_file(tmp_path / "0080000.pt", num_heads=config["num_heads"])
    reference = lightningdit_from_original(state_dict, num_heads=config["num_heads"])
    for (name, a), b in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert model.config.sample_size == 8
    plain = lightningdit_from_original(checkpoint, num_heads=config["num_heads"], use_ema=False)
    assert plain.proj_out.weight.abs().max() == 0

    with pytest.raises(ValueError, match="no published size"):
        lightningdit_from_original(state_dict)
    with pytest.raises(ValueError, match="24 channels, so it has 4 heads"):
        lightningdit_from_original(state_dict | {"feat_rope.freqs_cos": angles}, num_heads=6)
    qk_state, qk_config = golden_case("p2_qk")
    assert lightningdit_from_original(qk_state).config.num_attention_heads == qk_config["num_heads"]


def test_converted_on_the_command_line(tmp_path, capsys, caplog):
    """Heads that the file does not tell, and classes of one's own, by option."""
    from radiodiff_diffusers.cli import main

    state_dict, config = golden_case("b1")
    torch.save({"ema": state_dict}, tmp_path / "dit.pt")
    command = ["convert", str(tmp_path / "dit.pt"), str(tmp_path / "dit")]
    assert main(command) == 2
    assert "pass num_heads (--num-heads)" in capsys.readouterr().err
    assert main([*command, "--num-heads", str(config["num_heads"]), "--num-classes", "7"]) == 0
    assert "31 classes replaced by 7 new ones" in caplog.text
    model = LightningDiTTransformer2DModel.from_pretrained(tmp_path / "dit")
    null_row = state_dict["y_embedder.embedding_table.weight"][31]
    assert torch.equal(model.label_embedding.weight, null_row.expand(8, -1))


def test_wrong_checkpoints_get_one_line(tmp_path):
    state_dict, _ = golden_case("b1")
    with pytest.raises(ValueError, match="not a LightningDiT state dict: no x_embedder"):
        lightningdit_from_original({"encoder.conv_in.weight": torch.zeros(1)})
    lost = {k: v for k, v in state_dict.items() if k != "blocks.1.attn.proj.bias"}
    with pytest.raises(ValueError, match="missing .'blocks.1.attn.to_out.0.bias'"):
        lightningdit_from_original(lost, num_heads=4)
    with pytest.raises(ValueError, match="unknown .'blocks.0.strange'"):
        lightningdit_from_original(state_dict | {"blocks.0.strange": torch.zeros(1)}, num_heads=4)
    with pytest.raises(ValueError, match="pos_embed is not the fixed position table"):
        lightningdit_from_original(state_dict | {"pos_embed": torch.zeros(1, 64, 96)}, num_heads=4)
    for heads in (0, -1, 2.0, "4"):
        with pytest.raises(ValueError, match="expected a whole number from 1 up"):
            lightningdit_from_original(state_dict, num_heads=heads)
    (tmp_path / "x.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="x.pt cannot be read"):
        lightningdit_from_file(tmp_path / "x.pt")


def test_new_classes_start_from_the_null_class(caplog):
    state_dict, config = golden_case("b1")
    with caplog.at_level(logging.WARNING):
        model = lightningdit_from_original(state_dict, num_heads=config["num_heads"], num_classes=7)
    assert "31 classes replaced by 7" in caplog.text
    table = model.label_embedding.weight
    assert model.config.num_classes == 7 == model.null_label and table.shape == (8, 96)
    assert torch.equal(table, state_dict["y_embedder.embedding_table.weight"][31].expand(8, -1))


def test_published_sizes():
    """Parameter counts of the originals, which count their position table for a 16 x 16 latent among them."""
    counts = {"B/1": 130_556_192, "B/2": 130_556_288, "XL/1": 675_256_736, "XL/2": 675_256_832, "L/2": 458_153_056}
    for size, expected in counts.items():
        with torch.device("meta"):
            model = LightningDiTTransformer2DModel(**lightning_dit_config(size))
        table = (16 // model.config.patch_size) ** 2 * model.patch_embed.out_channels
        assert sum(p.numel() for p in model.parameters()) + table == expected, size
    assert lightning_dit_config("LightningDiT-XL/1") == lightning_dit_config("XL")
    small = lightning_dit_config("S/1")
    assert (small["num_layers"], small["num_attention_heads"] * small["attention_head_dim"]) == (12, 384)
    with pytest.raises(ValueError, match="no LightningDiT size 'M/1'"):
        lightning_dit_config("M/1")


def test_any_latent_size_counts_positions_from_zero():
    """A token's position does not depend on the size of the input: tables of a small one are part of a large one's."""
    large = sincos_position_embedding(6, 9, 32).reshape(6, 9, 32)
    assert torch.equal(large[:4, :5], sincos_position_embedding(4, 5, 32).reshape(4, 5, 32))
    model = small_model()
    with torch.no_grad():
        wide = model(draw(3, 1, 4, 6, 10), 0.5, torch.tensor([2])).sample
        tall = model(draw(3, 1, 4, 6, 10).mT.contiguous(), 0.5, torch.tensor([2])).sample
    assert wide.shape == (1, 4, 6, 10)
    assert (wide.mT - tall).abs().max() > 1e-3  # rows and columns are told apart
    with pytest.raises(ValueError, match="multiples of the patch size 2"):
        small_model(patch_size=2)(draw(3, 1, 4, 5, 4), 0.5, torch.tensor([2]))


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = small_model(class_dropout_prob=0.0).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(*small_inputs()).sample.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_label_dropout_only_in_training():
    model = small_model(class_dropout_prob=1.0)
    sample, time, _ = small_inputs()
    null = torch.full((2,), 5)
    with torch.no_grad():
        as_null = model(sample, time, null).sample
        assert (model(sample, time, torch.tensor([1, 2])).sample - as_null).abs().max() > 1e-3
        model.train()
        assert torch.equal(model(sample, time, torch.tensor([1, 2])).sample, as_null)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype):
    model = small_model(qk_norm=True)
    sample, time, labels = small_inputs()
    with torch.no_grad():
        exact = model(sample, time, labels).sample
        half = model.to(dtype)(sample.to(dtype), time, labels).sample
    assert half.dtype == dtype
    assert (half.float() - exact).norm() / exact.norm() < 0.05


def test_autocast_keeps_the_residual_stream_fp32():
    model = small_model()
    seen = []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(*small_inputs()).sample.float().square().mean()
    loss.backward()
    assert seen == [torch.float32]
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_save_and_load(tmp_path):
    model = small_model(qk_norm=True)
    model.save_pretrained(tmp_path)
    again = LightningDiTTransformer2DModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(*small_inputs()).sample, again(*small_inputs(), return_dict=False)[0])


def test_fused_projections_and_attention_backend():
    model = small_model()
    with torch.no_grad():
        expected = model(*small_inputs()).sample
        model.fuse_qkv_projections()
        assert model.blocks[0].attn.fused_projections
        assert (model(*small_inputs()).sample - expected).abs().max() < 1e-5
        model.unfuse_qkv_projections()
        model.set_attention_backend("native")
        assert (model(*small_inputs()).sample - expected).abs().max() < 1e-5


def test_lora_trains_and_reloads(tmp_path):
    from peft import LoraConfig

    model = small_model()
    with torch.no_grad():
        base = model(*small_inputs()).sample
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=model.lora_target_modules["all"]))
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in n for n in trainable)
    with torch.no_grad():
        assert (model(*small_inputs()).sample - base).abs().max() < 1e-5
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted = model(*small_inputs()).sample
    assert (adapted - base).abs().max() > 1e-2
    model.save_lora_adapter(tmp_path)
    again = small_model()
    again.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    with torch.no_grad():
        assert (again(*small_inputs()).sample - adapted).abs().max() < 1e-5


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    model = small_model()
    with torch.no_grad():
        expected = model(*small_inputs()).sample
        compiled = torch.compile(model, fullgraph=True)(*small_inputs()).sample
    assert (compiled - expected).abs().max() < 1e-4

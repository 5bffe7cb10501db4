"""Foundation features with tiny random transformers: grid, preprocessing, frozen, and weights that are not there."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer

from radiodiff_diffusers.models.foundation_features import FoundationFeatures


def tiny(patch, size, seed=0):
    torch.manual_seed(seed)
    options = dict(embed_dim=32, depth=2, num_heads=2, init_values=1e-1, num_classes=0, dynamic_img_size=True)
    return VisionTransformer(img_size=size, patch_size=patch, **options)


def image(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_dinov2_sees_224_for_256_and_no_imagenet_colours():
    """As published tokenizers were trained: the image in [-1, 1], resized bilinearly, last block after the norm."""
    model = tiny(14, 70).eval()
    features = FoundationFeatures(model)(image(2, 3, 256, 256))
    assert features.shape == (2, 32, 16, 16)
    resized = F.interpolate(image(2, 3, 256, 256), size=(224, 224), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = model.forward_features(resized)[:, 1:].reshape(2, 16, 16, -1).permute(0, 3, 1, 2)
    assert torch.equal(features, expected)


def test_position_table_is_resampled_with_antialiasing():
    from timm.layers import resample_abs_pos_embed

    model = tiny(14, 518).eval()
    tokens = model.patch_embed(image(1, 3, 224, 224))
    prefix, grid = model.pos_embed[:, :1], model.pos_embed[:, 1:]
    grid = grid.reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(16, 16), mode="bicubic", antialias=True)
    expected = torch.cat([prefix, grid.permute(0, 2, 3, 1).reshape(1, 256, -1)], dim=1)
    assert (resample_abs_pos_embed(model.pos_embed, (16, 16)) - expected).abs().max() < 1e-6
    embedded = model._pos_embed(tokens)
    assert (embedded[:, 1:] - tokens.reshape(1, 256, -1) - expected[:, 1:]).abs().max() < 1e-6


def test_mae_sees_the_image_as_it_is():
    model = tiny(16, 224).eval()
    picture = image(1, 3, 256, 256)
    with torch.no_grad():
        expected = model.forward_features(picture)[:, 1:].reshape(1, 16, 16, -1).permute(0, 3, 1, 2)
    assert torch.equal(FoundationFeatures(model)(picture), expected)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_any_size_lands_on_the_latent_grid(size):
    for patch in (14, 16):
        features = FoundationFeatures(tiny(patch, 4 * patch))(image(1, 3, *size))
        assert features.shape == (1, 32, size[0] // 16, size[1] // 16)


def test_gray_counts_as_three_equal_colours():
    features = FoundationFeatures(tiny(16, 64))
    gray = image(1, 1, 64, 64)
    assert torch.equal(features(gray), features(gray.repeat(1, 3, 1, 1)))


def test_imagenet_normalization_by_request():
    model = tiny(16, 64)
    picture = image(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = ((picture + 1) / 2 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    corrected = FoundationFeatures(model, imagenet_normalization=True)(picture)
    assert torch.allclose(corrected, FoundationFeatures(model)(by_hand), atol=1e-5)
    assert not torch.allclose(corrected, FoundationFeatures(model)(picture), atol=1e-2)


def test_antialiasing_by_request():
    model, picture = tiny(14, 70), image(1, 3, 256, 256)
    by_hand = F.interpolate(picture, size=(224, 224), mode="bilinear", align_corners=False, antialias=True)
    corrected = FoundationFeatures(model, antialias=True)(picture)
    with torch.no_grad():
        expected = model.forward_features(by_hand)[:, 1:].reshape(1, 16, 16, -1).permute(0, 3, 1, 2)
    assert torch.equal(corrected, expected)
    assert not torch.allclose(corrected, FoundationFeatures(model)(picture), atol=1e-3)


def test_frozen_eval_and_half_precision():
    features = FoundationFeatures(tiny(16, 64)).train()
    assert not features.training and not features.model.training
    assert not any(p.requires_grad for p in features.parameters())
    picture = image(1, 3, 64, 64).requires_grad_()
    exact = features(picture)
    assert not exact.requires_grad and features.channels == 32
    half = features.to(torch.bfloat16)(picture)
    assert half.dtype == torch.bfloat16
    assert F.cosine_similarity(half.float(), exact, dim=1).min() > 0.99


def test_local_weights_and_clear_messages(tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(3)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    loaded = FoundationFeatures.from_pretrained("vit_tiny_patch16_224", weights=tmp_path / "vit.safetensors")
    assert torch.equal(loaded.model.blocks[3].attn.qkv.weight, source.blocks[3].attn.qkv.weight)

    with pytest.raises(ValueError, match="nowhere.safetensors: no such file"):
        FoundationFeatures.from_pretrained("mae", weights=tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="unknown foundation model 'dino9'"):
        FoundationFeatures.from_pretrained("dino9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="weights of the foundation model 'vit_tiny_patch16_224' cannot be had"):
        FoundationFeatures.from_pretrained("vit_tiny_patch16_224")
    with pytest.raises(ValueError, match="dynamic_img_size=True"):
        FoundationFeatures(timm.create_model("vit_tiny_patch16_224"))
    with pytest.raises(ValueError, match="multiples of 16"):
        FoundationFeatures(tiny(16, 64))(image(1, 3, 60, 64))

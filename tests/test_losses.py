"""Losses and schedules against the recorded numbers of the original, and by their properties."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from radiodiff_diffusers.models.patch_discriminator import PatchDiscriminator
from radiodiff_diffusers.training import losses
from radiodiff_diffusers.training.schedules import make_schedule
from schedulers.scheduling_const_sde import ConstSDEScheduler

GOLDENS = Path(__file__).parent / "goldens"


def rs(seed, *shape):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def filled(name, shape):
    """The recorded networks' weights: a function of their names."""
    a = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).standard_normal(shape).astype(np.float32)
    leaf = name.rpartition(".")[2]
    if leaf == "running_var":
        a = 1 + 0.1 * np.abs(a)
    elif leaf in ("running_mean", "bias"):
        a = 0.02 * a
    elif a.ndim == 1:
        a = 1 + 0.1 * a
    else:
        a = a / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(a.astype(np.float32))


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDENS / "vae.safetensors")


@pytest.fixture
def discriminator():
    model = PatchDiscriminator(in_channels=1)
    state = {
        k: filled(f"loss.discriminator.{k}", tuple(v.shape)) if v.is_floating_point() else v
        for k, v in model.state_dict().items()
    }
    last = [k for k in state if k.endswith(".weight")][-1]
    state[last] = state[last] * 200
    model.load_state_dict(state)
    return model.train()


@pytest.mark.parametrize("step", [0, 60000])
def test_vae_gan_losses_are_the_original_s(recorded, discriminator, step):
    image, reconstruction = torch.tanh(rs(303, 2, 1, 64, 64)), recorded["gan.rec"]
    error = losses.pixel_error(image, reconstruction)
    nll = losses.summed_nll(error)
    fake = discriminator(reconstruction)
    generator = losses.generator_loss(fake)
    real = discriminator(image)
    gen, disc = f"gan.gen.step{step}.", f"gan.disc.step{step}."
    near = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(error.mean()[None], recorded[gen + "rec_loss"], **near)
    torch.testing.assert_close(nll[None], recorded[gen + "nll_loss"], **near)
    torch.testing.assert_close(generator[None], recorded[gen + "g_loss"], **near)
    torch.testing.assert_close(real.mean()[None], recorded[disc + "logits_real"], **near)
    active = losses.gan_active(step, 50001)
    assert float(active) == float(recorded[gen + "disc_factor"])
    total = nll + 1e-6 * recorded[gen + "kl_loss"] + recorded[gen + "d_weight"] * active * generator
    torch.testing.assert_close(total, recorded[gen + "loss"], **near)
    loss = losses.discriminator_loss(real, fake) * active
    torch.testing.assert_close(loss[None], recorded[disc + "disc_loss"], **near)


def test_kl_is_the_original_s(recorded):
    kl = losses.kl_divergence(recorded["encode.mean"], recorded["encode.logvar"])
    torch.testing.assert_close(kl[None], recorded["kl"], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_adaptive_weight_is_the_original_s(recorded, discriminator):
    """The whole chain: converted autoencoder, decoder's last convolution, both gradients."""
    import json

    from radiodiff_diffusers.convert.radiodiff import vae_from_original

    manifest = json.loads((GOLDENS / "vae_manifest.json").read_text())
    shapes = {k: shape for k, (_, shape) in manifest.items() if not k.startswith("loss.")}
    vae = vae_from_original({k: filled(k, shape) for k, shape in shapes.items()})
    image = torch.tanh(rs(303, 2, 1, 64, 64))
    posterior = vae.encode(image).latent_dist
    reconstruction = vae.decode(posterior.mean + posterior.std * rs(304, 2, 3, 16, 16)).sample
    torch.testing.assert_close(reconstruction, recorded["gan.rec"], rtol=1e-4, atol=1e-4)
    nll = losses.summed_nll(losses.pixel_error(image, reconstruction))
    generator = losses.generator_loss(discriminator(reconstruction))
    weight = losses.adaptive_weight(nll, generator, vae.decoder.conv_out.weight, 0.5)
    torch.testing.assert_close(weight[None], recorded["gan.gen.step0.d_weight"], rtol=1e-3, atol=1e-3)


def test_adaptive_weight_on_known_gradients():
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    nll, other = (3 * layer).sum(), (layer * torch.tensor([0.0, 4.0])).sum()
    weight = losses.adaptive_weight(nll, other, layer, 0.5)
    assert float(weight) == pytest.approx(0.5 * (18**0.5) / (4 + 1e-4)) and not weight.requires_grad
    assert float(losses.adaptive_weight(1e9 * nll, other, layer, 0.5)) == pytest.approx(0.5 * 1e4)  # clamped


@pytest.mark.parametrize("weighted", [0, 1])
@pytest.mark.parametrize("l1", [0, 1])
def test_pair_loss_is_the_original_s(weighted, l1):
    recorded = load_file(GOLDENS / "sampler.safetensors")
    x0, noise, t = rs(401, 4, 3, 8, 8), rs(402, 4, 3, 8, 8), torch.tensor([1e-4, 0.25, 0.6, 1.0])
    scheduler = ConstSDEScheduler()
    x = scheduler.add_noise(x0, noise, t)
    torch.testing.assert_close(x, recorded["loss.x_noisy"], rtol=1e-5, atol=1e-5)
    time = t[:, None, None, None]
    drift = -0.7 * x + 0.2 * torch.sin(3 * x) * time
    predicted = 0.5 * x + 0.3 * torch.cos(2 * x) * time.sqrt()
    weights = scheduler.loss_weights(t) if weighted else None
    loss = losses.pair_loss(drift, predicted, *scheduler.get_targets(x0, noise), weights=weights, l1=bool(l1))
    torch.testing.assert_close(loss.mean()[None], recorded[f"loss.w{weighted}.l1{l1}"], rtol=1e-5, atol=1e-5)


def test_pair_loss_leaves_out_masked_pixels():
    zeros = torch.zeros(1, 1, 4, 4)
    wrong = zeros.clone()
    wrong[..., 0, 0] = 5.0
    free = torch.ones(1, 1, 4, 4)
    assert losses.pair_loss(wrong, wrong, zeros, zeros, pixel_weight=free) > 0
    free[..., 0, 0] = 0
    assert losses.pair_loss(wrong, wrong, zeros, zeros, pixel_weight=free) == 0


def test_discriminator_losses():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    assert float(losses.discriminator_loss(real, fake)) == pytest.approx(0.5 * (0.5 + 1.0))
    expected = 0.5 * (np.log1p(np.exp([-2.0, 0.0])).mean() + np.log1p(np.exp([-2.0, 1.0])).mean())
    assert float(losses.discriminator_loss(real, fake, "vanilla")) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="hinge or vanilla"):
        losses.discriminator_loss(real, fake, "wgan")


@pytest.mark.parametrize("name", sorted(losses.IMAGE_TERMS))
def test_image_terms(name):
    """Zero for equal maps, positive and smaller the nearer, differentiable, blind to what lies in buildings."""
    target = torch.tanh(rs(1, 2, 1, 24, 24)) * 0.2
    near, far = (target + s * torch.tanh(rs(2, 2, 1, 24, 24)) for s in (0.02, 0.1))
    far.requires_grad_()
    term = losses.IMAGE_TERMS[name]
    assert term(target, target).abs().max() < 1e-5
    value = term(far, target)
    assert value.shape == (2,) and (value > term(near, target)).all() and (term(near, target) > 0).all()
    value.sum().backward()
    assert torch.isfinite(far.grad).all() and far.grad.abs().sum() > 0
    if name != "ssim":  # its window looks over a building's edge
        free = torch.ones(2, 1, 24, 24)
        free[..., :, 12:] = 0
        changed = target.clone()
        changed[..., 14:] += 0.3
        assert term(changed, target, free).abs().max() < 1e-5 < term(changed, target).min()


def test_the_ssim_term_is_ssim():
    torchmetrics = pytest.importorskip("torchmetrics")
    a, b = torch.tanh(rs(5, 1, 1, 40, 40)), torch.tanh(rs(6, 1, 1, 40, 40))
    measure = torchmetrics.functional.structural_similarity_index_measure
    assert float(1 - losses.ssim_term(a, b)) == pytest.approx(float(measure(a, b, data_range=2.0)), abs=1e-5)


def test_the_helmholtz_term_sees_waves():
    """A map whose amplitude solves lap(u) = -k^2 u has no residual against one of the same k and another amplitude."""
    rows = torch.arange(32.0)
    u = 2 + torch.cos(0.2 * rows)[:, None].expand(32, 32)
    unit = 20 * torch.log10(u) / 49.58
    louder = 20 * torch.log10(3 * u) / 49.58
    other = 20 * torch.log10(2 + torch.cos(0.5 * rows)[:, None].expand(32, 32)) / 49.58
    same = losses.helmholtz_term(louder[None, None], unit[None, None])
    assert float(same) < 1e-4 < float(losses.helmholtz_term(other[None, None], unit[None, None]))


def test_terms_are_named_and_checked():
    assert set(losses.image_terms({"ssim": 0.5, "gradient": 0.0}, rs(1, 1, 1, 16, 16), rs(2, 1, 1, 16, 16))) == {
        "ssim"
    }
    with pytest.raises(ValueError, match="names 'sim'; known here: .*ssim"):
        losses.check_terms({"sim": 1.0})


def test_feature_matching():
    maps = [rs(1, 1, 4, 8, 8), rs(2, 1, 8, 4, 4)]
    assert float(losses.feature_matching(maps, maps)) == 0
    assert float(losses.feature_matching(maps, [m + 1 for m in maps])) == pytest.approx(1.0, rel=1e-5)


def test_perceptual_loss_takes_any_number_of_channels():
    loss = losses.PerceptualLoss("squeeze", pretrained=False)
    gray, other = torch.tanh(rs(1, 2, 1, 64, 64)), torch.tanh(rs(2, 2, 1, 64, 64))
    value = loss(gray, other)
    assert value.shape == (2, 1, 1, 1)
    torch.testing.assert_close(loss(gray.repeat(1, 3, 1, 1), other.repeat(1, 3, 1, 1)), value)
    two = loss(torch.cat([gray, other], 1), torch.cat([other, other], 1))
    torch.testing.assert_close(two, value / 2, rtol=1e-4, atol=1e-6)  # the second plane is equal
    assert not loss.train().training and not any(p.requires_grad for p in loss.parameters())


def test_perceptual_weights_that_cannot_be_had_are_no_silent_none(monkeypatch):
    import lpips

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(ValueError, match="could not be downloaded .*perceptual: none"):
        losses.make_perceptual("vgg")
    assert losses.make_perceptual("none") is None
    with pytest.raises(ValueError, match="choose vgg"):
        losses.make_perceptual("vgg19")


def test_latent_scale():
    assert losses.latent_scale(rs(1, 4, 3, 32, 32) * 4) == pytest.approx(0.25, rel=0.02)


# Schedules
# --------------------------------------------------------------------------------------------------------------


def test_floors_are_true_floors():
    poly = make_schedule("polynomial_floor", 5e-5, 1000, floor=5e-6, power=0.96)
    assert poly(0) == 5e-5 and poly(500) == pytest.approx(5e-5 * 0.5**0.96)
    assert poly(1000) == poly(999) == 5e-6  # the original would go down to 5e-5 * 5e-6
    cosine = make_schedule("cosine_floor", 5e-6, 1000, floor=5e-7)
    assert cosine(0) == pytest.approx(5e-6) and cosine(1000) == pytest.approx(5e-7)
    assert cosine(500) == pytest.approx((5e-6 + 5e-7) / 2)


def test_warm_up_and_diffusers_schedules():
    warm = make_schedule("cosine_floor", 1.0, 110, warmup_steps=10)
    assert warm(5) == 0.5 and warm(10) == 1.0 and warm(110) == pytest.approx(0)
    assert make_schedule("linear", 2.0, 100)(50) == pytest.approx(1.0)
    assert make_schedule("constant_with_warmup", 2.0, 100, warmup_steps=10)(5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("cosin", 1.0, 10), "choose one of polynomial_floor, cosine_floor, linear"),
        (("cosine", 1.0, 10, 0, 0.1), "has no floor"),
        (("cosine_floor", 1.0, 10, 0, 2.0), "between 0 and learning_rate"),
    ],
)
def test_schedule_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(*arguments)

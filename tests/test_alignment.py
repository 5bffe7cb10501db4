"""The alignment loss: golden numbers, slices, projections, adaptive weight."""

import pytest
import torch

from radiodiff_diffusers.training import alignment
from radiodiff_diffusers.training.alignment import AlignmentProjection, adaptive_weight, alignment_loss


def golden_inputs():
    generator = torch.Generator().manual_seed(123)
    return torch.randn(2, 8, 4, 4, generator=generator), torch.randn(2, 8, 4, 4, generator=generator)


@pytest.mark.parametrize(
    ("margins", "cosine", "distance"),
    [((0.0, 0.0), 0.9949040, 0.3758892), ((0.5, 0.25), 0.4971996, 0.1867739)],
)
def test_golden_numbers(margins, cosine, distance):
    marginal_cosine, marginal_distance = alignment_loss(*golden_inputs(), *margins)
    assert marginal_cosine.item() == pytest.approx(cosine, abs=2e-6)
    assert marginal_distance.item() == pytest.approx(distance, abs=2e-6)


def test_perfect_alignment_costs_nothing_and_margins_forgive():
    z, _ = golden_inputs()
    cosine, distance = alignment_loss(3 * z, z)  # only directions count
    assert abs(cosine) < 1e-6 and abs(distance) < 1e-6
    assert all(v == 0 for v in alignment_loss(*golden_inputs(), 2.0, 2.0))


def test_slices_give_the_same_loss_and_gradient(monkeypatch):
    results = []
    for entries in (10**9, 2 * 16 * 5):  # one piece; slices of 5, 5, 5 and 1 rows
        monkeypatch.setattr(alignment, "_CHUNK_ENTRIES", entries)
        z, features = golden_inputs()
        z.requires_grad_()
        _, distance = alignment_loss(z, features, 0.5, 0.25)
        (first,) = torch.autograd.grad(distance, z, retain_graph=True)
        distance.backward()  # the adaptive weight needs the graph twice
        assert torch.equal(first, z.grad)
        results.append((distance.detach(), z.grad))
    (whole, whole_gradient), (sliced, sliced_gradient) = results
    assert abs(whole - sliced) < 1e-6
    assert (whole_gradient - sliced_gradient).abs().max() < 1e-8


def test_memory_is_bounded(monkeypatch):
    """No tensor of the graph has the size of the whole distance matrix."""
    monkeypatch.setattr(alignment, "_CHUNK_ENTRIES", 16 * 256)
    z, features = torch.randn(1, 4, 16, 16, requires_grad=True), torch.randn(1, 4, 16, 16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        alignment_loss(z, features)[1].backward()
    assert max(saved) <= 16 * 256 < 256**2  # slices of 16 rows


def test_half_precision_is_computed_in_fp32():
    z, features = (t.bfloat16() for t in golden_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = alignment_loss(z, features)
    exact = alignment_loss(z.float(), features.float())
    assert half[0].dtype == torch.float32
    assert half == exact


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"z is \(2, 8, 4, 4\) and features \(2, 8, 4, 5\)"):
        alignment_loss(golden_inputs()[0], torch.zeros(2, 8, 4, 5))


def test_projection_both_ways():
    z, features = torch.randn(2, 4, 3, 3), torch.randn(2, 10, 3, 3)
    up, down = AlignmentProjection(4, 10), AlignmentProjection(4, 10, reverse=False)
    projected, same = up(z, features)
    assert same is features and projected.shape == features.shape
    assert up.weight.shape == (10, 4, 1, 1) and up.bias is None
    same, projected = down(z, features)
    assert same is z and projected.shape == z.shape
    assert down.weight.shape == (4, 10, 1, 1) and down.bias.shape == (4,)
    assert set(up.state_dict()) == {"weight"} and set(down.state_dict()) == {"weight", "bias"}


def test_adaptive_weight_levels_the_gradients():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    reference, loss = (weight * torch.tensor([3.0, 4.0])).sum(), (weight * torch.tensor([0.0, 0.5])).sum()
    value = adaptive_weight(reference, loss, weight, scale=0.1)
    assert value.item() == pytest.approx(0.1 * 5.0 / (0.5 + 1e-4))
    assert not value.requires_grad
    assert adaptive_weight(reference, loss * 1e-9, weight, scale=0.5, maximum=1e4).item() == pytest.approx(5e3)
    with torch.no_grad():
        assert adaptive_weight(weight.sum(), weight.sum(), weight) == 0

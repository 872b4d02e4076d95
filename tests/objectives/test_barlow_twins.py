from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyg_dim.data.compositions import CompositionDataset
from pyg_dim.data.keys import EQUALS_KEYS, LINE_COS, LINE_INDEX, SITE_CLASS, forget
from pyg_dim.data.line_graph import edge_vectors
from pyg_dim.models import build
from pyg_dim.objectives import BarlowTwins
from pyg_dim.objectives.barlow_twins import LAMBDA, barlow_twins_loss, cross_correlation

FIXTURE = Path(__file__).parents[2] / "../shared/fixtures/barlow_twins.npz"
NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu"]
SMALL = {
    "sitenet": {"site_channels": 8, "pair_channels": 6, "heads": 2, "local_channels": 8, "pre_pool": [8],
                "post_pool": [8, 10]},
    "cgcnn": {"site_channels": 8, "convolutions": 2, "crystal_channels": 10, "gaussian_step": 0.8, "k": 9},
    "megnet": {"element_channels": 5, "gaussians": 20, "blocks": 2, "feature_channels": 8, "dense_hidden": [9],
               "convolution_hidden": [10, 11], "crystal_channels": 12},
    "alignn": {"alignn_layers": 2, "gcn_layers": 2, "hidden_channels": 8, "embedding_channels": 7,
               "crystal_channels": 12, "edge_gaussians": 20, "angle_gaussians": 10, "k": 6},
    "roost": {"site_channels": 8, "layers": 2, "heads": 2, "hidden_channels": 9, "trunk": [16, 12],
              "crystal_channels": 10, "element_channels": 7},
}  # fmt: skip
FIRST = {
    "sitenet": "encoder.local.embed_site.linear.weight",
    "cgcnn": "encoder.embed_site.weight",
    "megnet": "encoder.embed_element.weight",
    "alignn": "encoder.embed_site.linear.weight",
    "roost": "encoder.elements.learned.weight",
}
"""A parameter of the first layer."""


@pytest.fixture
def objective():
    """``objective(name, **options)``: Barlow Twins over a small encoder."""

    def make(name: str = "sitenet", **options) -> BarlowTwins:
        return BarlowTwins(build(name, **SMALL[name]).double(), **({"channels": 16} | options)).double()

    return make


@pytest.fixture
def batch(batch_of):
    """``batch(objective, names, dtype)``: crystals with the graph of its encoder."""

    def make(objective: BarlowTwins, names=NAMES, dtype=torch.float64):
        return objective.encoder.graph(batch_of(names, dtype))

    return make


def random_views(n: int = 12, d: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)


@pytest.mark.parametrize("case", ["a", "b", "c", "d"])
def test_numbers_and_gradients_are_those_of_the_published_program(case) -> None:
    if not FIXTURE.exists():
        pytest.skip("barlow_twins.npz is not there: parity data lie outside the repository")
    with np.load(FIXTURE, allow_pickle=False) as file:
        stored = {name[2:]: torch.from_numpy(file[name]) for name in file.files if name.startswith(f"{case}/")}
    z1, z2 = (stored[name].clone().requires_grad_() for name in ("z1", "z2"))
    lambd, divisor = stored["lambd"].item(), stored["divisor"].item()
    if divisor == z1.size(0):
        total, on_diagonal, off_diagonal = barlow_twins_loss(z1, z2, lambd)
    else:
        # That program divides by the size of a full training batch, whatever the batch holds.
        correlation = cross_correlation(z1, z2) * z1.size(0) / divisor
        diagonal = correlation.diagonal()
        on_diagonal = (diagonal - 1).square().sum()
        off_diagonal = (correlation - diagonal.diag()).square().sum()
        total = on_diagonal + lambd * off_diagonal
        torch.testing.assert_close(correlation, stored["cross_corr"], rtol=1e-12, atol=1e-14)
    total.backward()
    for value, name in ((total, "loss"), (on_diagonal, "on_diag"), (off_diagonal, "off_diag")):
        torch.testing.assert_close(value.detach(), stored[name], rtol=1e-12, atol=0)
    for z, name in ((z1, "grad_z1"), (z2, "grad_z2")):
        torch.testing.assert_close(z.grad, stored[name], rtol=1e-12, atol=1e-12 * stored[name].abs().max().item())


def test_the_correlation_is_that_of_numpy() -> None:
    z1, z2 = random_views()
    expected = np.corrcoef(z1.numpy(), z2.numpy(), rowvar=False)[:5, 5:]
    # The two differ by what is added to the variances.
    torch.testing.assert_close(cross_correlation(z1, z2), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)


def test_closed_form_values() -> None:
    # Columns of a Hadamard matrix: mean 0, variance 1, uncorrelated.
    h = torch.tensor([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]], dtype=torch.float64)
    shrunk = 1 / (1 + 1e-5)
    total, on_diagonal, off_diagonal = barlow_twins_loss(h, h)
    assert on_diagonal.item() == pytest.approx(3 * (shrunk - 1) ** 2)
    assert off_diagonal.item() == pytest.approx(0, abs=1e-30)
    # Columns that change places are uncorrelated with those of their number, and repeat each other.
    total, on_diagonal, off_diagonal = barlow_twins_loss(h, h.roll(1, dims=1), lambd=0.5)
    assert (on_diagonal.item(), off_diagonal.item()) == (pytest.approx(3), pytest.approx(3 * shrunk**2))
    assert total.item() == pytest.approx(3 + 0.5 * 3 * shrunk**2)


def test_neither_order_nor_the_scale_of_dimensions_counts() -> None:
    z1, z2 = random_views(n=64)
    loss = barlow_twins_loss(z1, z2)[0]
    order = torch.randperm(64)
    torch.testing.assert_close(barlow_twins_loss(z1[order], z2[order])[0], loss)
    torch.testing.assert_close(barlow_twins_loss(z2, z1)[0], loss)
    torch.testing.assert_close(barlow_twins_loss(100 * z1 + 7, 50 * z2 - 3)[0], loss, rtol=1e-4, atol=0)


def test_one_row_has_no_gradient_and_is_no_nan() -> None:
    z1, z2 = (z.requires_grad_() for z in random_views(n=1))
    total, on_diagonal, off_diagonal = barlow_twins_loss(z1, z2)
    total.backward()
    assert (total.item(), on_diagonal.item(), off_diagonal.item()) == (5, 5, 0)
    assert not z1.grad.any()
    assert not z2.grad.any()


def test_half_precision_is_computed_in_single() -> None:
    z1, z2 = (z.to(torch.bfloat16) for z in random_views(n=64))
    with torch.autocast("cpu", torch.bfloat16):
        half = barlow_twins_loss(z1, z2)[0]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, barlow_twins_loss(z1.float(), z2.float())[0])


def test_views_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must both be \[N, D\], not \[12, 5\] and \[11, 5\]"):
        barlow_twins_loss(random_views()[0], random_views(n=11)[1])


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_architecture_trains(name, objective, batch, generator) -> None:
    model = objective(name)
    crystals = batch(model)
    losses = model(crystals, generator)
    assert set(losses) == {"total", "barlow/on_diagonal", "barlow/off_diagonal"}
    assert losses["total"].item() == pytest.approx(sum(v.item() for n, v in losses.items() if n != "total"))
    assert not any(v.requires_grad for n, v in losses.items() if n != "total")
    losses["total"].backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert all(p.grad.isfinite().all() for n, p in model.named_parameters() if p.grad is not None)
    # Critics and noise are those of Deep InfoMax.
    assert {"projector.weight", FIRST[name]} <= reached
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(8):
        optimiser.zero_grad()
        model(crystals, torch.Generator().manual_seed(0))["total"].backward()
        optimiser.step()
    assert model(crystals, torch.Generator().manual_seed(0))["total"] < losses["total"]


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_copy_without_distortion_is_the_crystal(name, objective, batch) -> None:
    model = objective(name, mask=0.0, displacement=0.0).eval()
    crystals = batch(model)
    view = model.distorted(crystals)
    torch.testing.assert_close(model.encoder(view), model.encoder(crystals), rtol=1e-9, atol=1e-9)
    # Views that are equal lose what the variance is shrunk by, and what dimensions repeat of each other.
    z = model.project(crystals)
    torch.testing.assert_close(model(crystals)["total"], barlow_twins_loss(z, z)[0] / 16)


@pytest.mark.parametrize("mask", [0.01, 0.3, 0.5, 0.99])
def test_some_sites_of_each_crystal_are_hidden_but_never_all(mask, objective, batch, generator) -> None:
    model = objective(mask=mask)
    crystals = batch(model)
    before = {key: value.clone() for key, value in crystals.to_dict().items() if isinstance(value, torch.Tensor)}
    view = model.distorted(crystals, generator)
    hidden = view.z == 0
    for k, (start, end) in enumerate(zip(crystals.ptr[:-1].tolist(), crystals.ptr[1:].tolist(), strict=True)):
        n = end - start
        assert hidden[start:end].sum() == min(max(round(mask * n), 1), n - 1), NAMES[k]
    assert not view.x[hidden].any()
    assert not view.oxidation[hidden].any()
    assert view.x[~hidden].equal(crystals.x[~hidden])
    assert view.z[~hidden].equal(crystals.z[~hidden])
    # The batch is left as it was.
    assert all(crystals[key].equal(value) for key, value in before.items())


@pytest.mark.parametrize(("mask", "hidden"), [(0.1, [1, 1, 1]), (0.7, [1, 1, 3])])
def test_elements_of_a_formula_are_hidden_also_the_only_one(mask, hidden, objective, generator) -> None:
    model = objective("roost", mask=mask)
    formulas = CompositionDataset.from_formulas(["Fe", "Na2Cl", "Ba0.5Sr0.5Co0.8FeO3"], dtype=torch.float64)
    batch = model.encoder.graph(formulas.gather(torch.arange(3)))
    view = model.distorted(batch, generator)
    assert [int((view.z[batch.batch == k] == 0).sum()) for k in range(3)] == hidden
    assert view.amount is batch.amount
    assert view.edge_index is batch.edge_index
    # A hidden element enters with the bias alone, and its fraction.
    given = model.encoder.embed_element(model.encoder.elements(view.z))
    assert given[view.z == 0].equal(model.encoder.embed_element.bias.expand_as(given[view.z == 0]))


def test_every_site_is_hidden_equally_often(objective, batch, generator) -> None:
    model = objective(mask=0.3)
    crystals = batch(model, ["triclinic"])
    count = sum((model.distorted(crystals, generator).z == 0).long() for _ in range(350))
    # Two of seven: 100 times each, with a standard deviation of 8.5.
    assert count.sum() == 700
    assert (count - 100).abs().max() < 40


def test_displacements_are_gaussian_and_the_graph_is_that_of_the_new_positions(objective, batch, generator) -> None:
    model = objective(displacement=0.2)
    crystals = batch(model, ["triclinic", "TiO2"] * 40)
    view = model.distorted(crystals, generator)
    moved = view.pos - crystals.pos
    assert moved.std().item() == pytest.approx(0.2, rel=0.05)
    assert moved.mean().item() == pytest.approx(0, abs=0.02)
    source, target = view.edge_index
    image = (view.edge_shift.double()[:, None] @ view.cell[view.batch[target]]).squeeze(1)
    length = (view.pos[source] + image - view.pos[target]).norm(dim=1)
    torch.testing.assert_close(view.edge_dist, length, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(view.edge_dist, crystals.edge_dist)


def test_classes_of_equal_sites_hold_for_the_view(objective, batch, generator) -> None:
    model = objective("megnet", displacement=0.0, mask=0.3).eval()
    crystals = batch(model)
    view = model.distorted(crystals, generator)
    assert not view[SITE_CLASS].equal(crystals[SITE_CLASS])
    with_classes = model.encoder(view)
    forget(view, EQUALS_KEYS)
    torch.testing.assert_close(with_classes, model.encoder(view), rtol=1e-9, atol=1e-9)
    # Sites that have moved have nothing equal.
    moved = objective("megnet", displacement=0.2, mask=0.0).distorted(crystals, generator)
    assert int(moved[SITE_CLASS].max()) + 1 == moved.z.numel()


def test_angles_are_those_of_the_view(objective, batch, generator) -> None:
    model = objective("alignn", displacement=0.2)
    view = model.distorted(batch(model), generator)
    first, second = view[LINE_INDEX]
    along = torch.nn.functional.normalize(edge_vectors(view), dim=1)
    torch.testing.assert_close(view[LINE_COS], -(along[first] * along[second]).sum(1), rtol=1e-9, atol=1e-9)


def test_a_seed_decides_on_the_views(objective, batch) -> None:
    model = objective()
    crystals = batch(model)
    first, again, other = (model(crystals, torch.Generator().manual_seed(s))["total"].item() for s in (1, 1, 2))
    assert first == again != other


def test_running_statistics_are_those_of_the_crystals_alone(objective, batch) -> None:
    model = objective("cgcnn").train()
    crystals = batch(model)
    initial = {name: value.clone() for name, value in model.encoder.named_buffers()}
    model(crystals)
    after = {name: value.clone() for name, value in model.encoder.named_buffers()}
    assert any(not after[name].equal(value) for name, value in initial.items())
    model.encoder.load_state_dict(model.encoder.state_dict() | initial)
    model.encoder(crystals)
    assert all(after[name].equal(value) for name, value in model.encoder.named_buffers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0}, "channels must be at least 1, not 0"),
        ({"mask": 1.0}, r"mask is a share of sites in \[0, 1\), not 1.0"),
        ({"mask": -0.1}, "mask is a share of sites"),
        ({"displacement": -1.0}, "displacement must be finite and not negative"),
        ({"lambd": float("inf")}, "lambd must be finite and not negative, not inf"),
    ],
)
def test_bad_arguments_are_named(options, message, objective) -> None:
    with pytest.raises(ValueError, match=message):
        objective(**options)


def test_encoders_with_vectors_of_the_elements_have_none_for_a_hidden_site() -> None:
    encoder = build("cgcnn", **SMALL["cgcnn"], species_channels=4)
    with pytest.raises(ValueError, match=r"species_channels.*use mask=0"):
        BarlowTwins(encoder)
    assert BarlowTwins(encoder, mask=0.0).lambd == LAMBDA


def test_a_batch_of_something_else_is_refused(objective) -> None:
    with pytest.raises(ValueError, match="needs a batch of CrystalLoader, not a Tensor"):
        objective()(torch.zeros(3))

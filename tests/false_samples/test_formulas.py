"""Formulas have no geometry: other formulas, and elements in another order, take the place of other crystals."""

from __future__ import annotations

import pytest
import torch

from pyg_dim.data import CompositionDataset, CompositionGraph
from pyg_dim.false_samples.permutation import permutation
from pyg_dim.false_samples.transplant import transplant

TEXTS = ["NaCl", "KBr", "Fe2O3", "Al2O3", "CaTiO3", "BaZrO3", "Fe", "Cu"]


@pytest.fixture
def batch_of_formulas():
    def make(texts: list[str]):
        dataset = CompositionDataset.from_formulas(texts, dtype=torch.float64)
        return CompositionGraph()(dataset.gather(torch.arange(len(texts))))

    return make


def parts(batch, k: int) -> dict[int, float]:
    here = batch.batch == k
    return dict(zip(batch.z[here].tolist(), batch.amount[here].tolist(), strict=True))


def test_a_transplant_is_another_formula_of_as_many_elements(batch_of_formulas, generator) -> None:
    batch = batch_of_formulas(TEXTS)
    true = [parts(batch, k) for k in range(len(TEXTS))]
    made = transplant(batch, kinds=("composition",), generator=generator)
    (kind,) = made.kinds
    assert kind.name == "composition"
    for k in range(len(TEXTS)):
        false = parts(made.batch, k)
        assert false in true
        assert false != true[k]
    assert [parts(batch, k) for k in range(len(TEXTS))] == true, "the batch is left as it was"
    assert kind.site_target.equal(torch.arange(batch.z.numel()))
    assert kind.keep_sites.all()


def test_elements_that_occur_with_the_same_share_are_masked(batch_of_formulas, generator) -> None:
    batch = batch_of_formulas(["Fe2O3", "Al4O6"])
    made = transplant(batch, kinds=("composition",), generator=generator)
    # Oxygen is three fifths of both: it is true as a neighbour, though the formulas differ.
    oxygen = made.batch.z[batch.edge_index[0]] == 8
    assert oxygen.sum() == 4
    assert made.kinds[0].keep_edges.equal(~oxygen)
    assert made.kinds[0].keep_sites.all()


@pytest.mark.parametrize("texts", [["Fe2O3", "Fe4O6"], ["Fe", "Fe2"], ["NaCl"], ["Hg0.7Cd0.3Te", "Hg7Cd3Te10"]])
def test_equal_formulas_are_masked(batch_of_formulas, texts, generator) -> None:
    batch = batch_of_formulas(texts)
    (kind,) = transplant(batch, kinds=("composition",), generator=generator).kinds
    assert not kind.keep_edges.any()
    assert not kind.keep_sites.any()


def test_a_single_formula_of_its_size_takes_what_there_is(batch_of_formulas, generator) -> None:
    batch = batch_of_formulas(["NaCl", "CaTiO3"])
    made = transplant(batch, kinds=("composition",), generator=generator)
    assert set(parts(made.batch, 0)) <= {8, 20, 22}
    assert set(parts(made.batch, 1)) == {11, 17}
    assert made.kinds[0].keep_sites.all()


def test_a_permutation_puts_the_elements_on_other_amounts(batch_of_formulas, generator) -> None:
    batch = batch_of_formulas(["Fe2O3", "NaCl", "CaTiO3", "Cu"] * 20)
    made = permutation(batch, generator=generator)
    (kind,) = made.kinds
    assert made.batch.amount.equal(batch.amount)
    assert kind.site_target is None
    moved = 0
    for k in range(80):
        here = batch.batch == k
        true, false = parts(batch, k), parts(made.batch, k)
        assert sorted(true) == sorted(false)
        assert kind.keep_sites[here].unique().tolist() == [true != false]
        moved += true != false
    # Half of Fe2O3, five sixths less those that leave Ti and Ca on ones: two thirds of CaTiO3; none of the others.
    assert 14 <= moved <= 33
    assert not kind.keep_sites[(batch.batch % 4) % 2 == 1].any()


def test_there_are_no_polymorphs(batch_of_formulas) -> None:
    with pytest.raises(ValueError, match="no polymorphs: take the kind composition alone"):
        transplant(batch_of_formulas(TEXTS))

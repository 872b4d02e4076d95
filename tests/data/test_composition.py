import numpy as np
import pytest
import torch

from pyg_dim.data import CompositionDataset
from pyg_dim.data.composition import composition_groups, composition_keys, element_fractions, reduced_formula
from pyg_dim.data.elements import atomic_numbers


@pytest.mark.parametrize(
    ("symbols", "formula"),
    [
        ("O O O Ti Sr", "SrTiO3"),
        ("Na Na Cl Cl", "NaCl"),
        ("Fe Fe Fe", "Fe"),
        ("Fe O Fe O Fe O O O", "Fe3O5"),
        ("B N", "BN"),
    ],
)
def test_formula_is_reduced_and_ordered_by_electronegativity(symbols, formula):
    assert reduced_formula(torch.tensor([atomic_numbers()[s] for s in symbols.split()])) == formula


def test_groups_are_the_formulas(make_dataset, random_crystal):
    rng = np.random.default_rng(0)
    dataset = make_dataset([random_crystal(rng, int(n), elements=(3, 8, 26)) for n in rng.integers(1, 7, 200)])
    groups = composition_groups(dataset)
    formulas = [dataset.formula(row) for row in range(200)]
    assert len(set(formulas)) == int(groups.max()) + 1 == len(groups.unique())
    assert len(set(zip(formulas, groups.tolist(), strict=True))) == len(set(formulas))
    assert len(set(formulas)) < 200


def test_keys_are_equal_where_formulas_are_across_data_sets():
    some = CompositionDataset.from_formulas(["Na2Cl2", "Fe0.7C0.3", "NaCl2"])
    others = CompositionDataset.from_formulas(["ClNa", "C3Fe7", "Cl4Na2", "KCl"])
    assert composition_keys(some) == composition_keys(others)[:3]
    assert len(set(composition_keys(others))) == 4


def test_fractions_are_shares_of_the_elements():
    dataset = CompositionDataset.from_formulas(["HLr3", "O2"])
    shares = element_fractions(dataset.z, dataset.ptr, dataset.amount)
    assert shares.shape == (2, 103)
    assert shares[0, [0, 102]].tolist() == [0.25, 0.75]
    assert shares[1, 7] == 1
    # Sites count, where there are no amounts.
    assert element_fractions(torch.tensor([1, 103, 1, 8]), torch.tensor([0, 3, 4]))[0, 0] == 2 / 3

import numpy as np
import pytest
import torch

from pyg_dim.data.composition import composition_groups, reduced_formula
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

from __future__ import annotations

import pytest
import torch

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.elements import MAX_Z, symbols
from pyg_dim.evaluate.families import with_metal_and_halogen


def one_each(structures: list[list[str]]) -> CrystalDataset:
    """A crystal of each list of elements."""
    pymatgen = pytest.importorskip("pymatgen.core")
    lattice = pymatgen.Lattice.cubic(5.0)
    return CrystalDataset.from_structures(
        [
            pymatgen.Structure(lattice, names, [[0.3 * k, 0.1, 0.2 * k] for k in range(len(names))])
            for names in structures
        ]
    )


def test_metals_are_those_of_pymatgen():
    pymatgen = pytest.importorskip("pymatgen.core")
    names = [name for name in symbols()[1 : MAX_Z + 1] if name not in ("Cl",)]
    found = with_metal_and_halogen(one_each([[name, "Cl"] for name in names]))
    expected = [pymatgen.Element(name).is_metal for name in names]
    assert dict(zip(names, found.tolist(), strict=True)) == dict(zip(names, expected, strict=True))


def test_it_takes_both():
    crystals = [["Na", "Cl"], ["Na", "O"], ["P", "Cl"], ["Na"], ["I"], ["K", "O", "Br"], ["K", "Na", "F"], ["Si", "F"]]
    found = with_metal_and_halogen(one_each(crystals))
    assert found.dtype == torch.bool
    assert found.tolist() == [True, False, False, False, False, True, True, False]

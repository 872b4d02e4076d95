"""Crystals from a list of anything."""

from __future__ import annotations

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from pymatgen.core import Lattice, Molecule, Structure

from pyg_dim.data.objects import read_objects

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
ALLOY = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


def test_one_crystal_in_every_form_is_the_same_crystal(tmp_path):
    SALT.to(str(tmp_path / "salt.cif"))
    SALT.to(str(tmp_path / "POSCAR"), fmt="poscar")
    atoms = Atoms(numbers=SALT.atomic_numbers, scaled_positions=SALT.frac_coords, cell=SALT.lattice.matrix, pbc=True)
    forms = [SALT, SALT.as_dict(), atoms, tmp_path / "salt.cif", str(tmp_path / "salt.cif"), tmp_path / "POSCAR"]
    dataset, faults = read_objects(forms, 50)
    assert not faults
    assert dataset.ids.to_pylist() == ["0", "1", "2", "3", "4", "5"]
    assert dataset.num_sites.tolist() == [2] * 6
    volumes = torch.linalg.det(dataset.cell).abs()
    torch.testing.assert_close(volumes, torch.full((6,), SALT.volume / 4))


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        (ALLOY, "partial occupancy", "Cu:0.5"),
        (None, "neither a pymatgen Structure nor ASE Atoms", "NoneType"),
        (3.5, "neither a pymatgen Structure nor ASE Atoms", "float"),
        ({"lattice": 1}, "no pymatgen structure dictionary", ""),
        (molecule("H2O"), "not periodic in three directions", ""),
        (Molecule(["O"], [[0, 0, 0]]), "neither a pymatgen Structure", "Molecule"),
        ("absent.cif", "unreadable file", "No such file"),
        ("notes.txt", "no path of a CIF or POSCAR file", "notes.txt"),
        ("data_salt\n_cell_length_a 5.6\n" * 300, "no path of a CIF or POSCAR file", "data_salt"),
        (bulk("Cu", cubic=True) * (3, 3, 2) + Atoms("Au", [[1, 1, 1]]), "more than 50 sites", "73"),
        (Structure(Lattice.cubic(3), ["Na", "Cl"], [[0, 0, 0], [0.01, 0, 0]]), "sites nearer than 0.5", "0.03"),
    ],
)
def test_what_cannot_be_used_is_told_by_its_place(bad, reason, detail):
    dataset, faults = read_objects([SALT, bad, SALT], 50)
    assert dataset.ids.to_pylist() == ["0", "2"]
    assert faults.keys() == {1}
    assert faults[1].reason.startswith(reason)
    assert detail in faults[1].detail
    alone, faults = read_objects([bad], 50)
    assert alone is None
    assert faults.keys() == {0}


def test_options_reach_the_data_set():
    dataset, faults = read_objects([SALT, bulk("Cu")], 1, "guess", torch.float64)
    assert dataset.pos.dtype == torch.float64
    assert faults[0].reason == "more than 1 sites"
    guessed, _ = read_objects([SALT], 2, "guess")
    assert sorted(guessed.oxidation.tolist()) == [-1, 1]

import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Lattice, Structure

from pyg_dim.data.report import ImportReport
from pyg_dim.data.structures import UnusableCrystalError, collect, primitive_cell, sites_of

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_structure_dictionary_and_atoms_give_the_same_sites():
    from pymatgen.io.ase import AseAtomsAdaptor

    for form in (SALT, SALT.as_dict(), AseAtomsAdaptor.get_atoms(SALT)):
        z, pos, cell = sites_of(form)
        assert z.tolist() == [11] * 4 + [17] * 4
        np.testing.assert_allclose(pos, SALT.cart_coords, atol=1e-12)
        np.testing.assert_allclose(cell, SALT.lattice.matrix, atol=1e-12)


def test_oxidation_decorated_species_are_elements():
    decorated = SALT.copy()
    decorated.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert sites_of(decorated)[0].tolist() == [11] * 4 + [17] * 4


@pytest.mark.parametrize(
    ("structure", "reason", "detail"),
    [
        (Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]]), "partial occupancy", "Cu:0.5"),
        (Structure(Lattice.cubic(3), [{"Cu": 0.9}], [[0, 0, 0]]), "partial occupancy", "Cu:0.9"),
        (Structure(Lattice.cubic(3), ["Rf"], [[0, 0, 0]]), "unknown or unsupported element", "Rf"),
        ({"lattice": {"matrix": [[1, 2], [3, 4]]}, "sites": []}, "no pymatgen structure dictionary", "shape"),
        ({"sites": []}, "no pymatgen structure dictionary", "lattice"),
        (Atoms("Rf", cell=[3, 3, 3], pbc=True), "unknown or unsupported element", "atomic number 104"),
        (Atoms("X", cell=[3, 3, 3], pbc=True), "unknown or unsupported element", "atomic number 0"),
        ("NaCl", "neither a pymatgen Structure nor ASE Atoms", "str"),
        (None, "neither a pymatgen Structure nor ASE Atoms", "NoneType"),
    ],
)
def test_what_cannot_be_used_says_why(structure, reason, detail):
    with pytest.raises(UnusableCrystalError) as error:
        sites_of(structure)
    assert error.value.reason == reason
    assert detail in error.value.detail


def test_conventional_cell_is_reduced_without_rotation():
    z, pos, cell = primitive_cell(sites_of(SALT))
    assert sorted(z) == [11, 17]
    assert abs(np.linalg.det(cell)) == pytest.approx(5.6**3 / 4)
    # The reduced vectors are lattice vectors of the original crystal, and the sites lie where they were.
    np.testing.assert_allclose(cell / 2.8, np.round(cell / 2.8), atol=1e-9)
    np.testing.assert_allclose(pos / 2.8, np.round(pos / 2.8), atol=1e-9)


def test_primitive_distorted_and_broken_cells_stay_as_they_are():
    primitive = sites_of(SALT.get_primitive_structure())
    distorted = SALT.copy()
    distorted.perturb(0.05)
    coinciding = (np.array([1, 1]), np.zeros((2, 3)), 3 * np.eye(3))
    nowhere = (np.array([1, 1]), np.full((2, 3), np.nan), 3 * np.eye(3))
    flat = (np.array([1, 1]), np.zeros((2, 3)), np.ones((3, 3)))
    for sites in (primitive, sites_of(distorted), coinciding, nowhere, flat):
        assert primitive_cell(sites) is sites


def test_collect_leaves_out_sites_that_coincide():
    report = ImportReport("test")
    crystals = [
        ("same", Structure(Lattice.cubic(4), ["Na", "Cl"], [[0.1, 0, 0], [1.1, 0, 0]])),
        ("across", Structure(Lattice.cubic(4), ["Na", "Na"], [[0, 0, 0], [0, 0, 0.9]])),
        ("atoms", Atoms("NaCl", positions=[[0, 0, 0], [0, 0, 0.3]], cell=[4, 4, 4], pbc=True)),
        ("salt", SALT),
        # A cell too small for any element, but with its atoms apart: for the checks that follow.
        ("dense", Structure(Lattice.cubic(0.9), ["Na"], [[0, 0, 0]])),
    ]
    raw = collect(crystals, {}, report)
    assert raw.ids.to_pylist() == ["salt", "dense"]
    assert report.counts() == {"sites nearer than 0.5 Å": 3}
    assert [str(item) for item in report.left_out] == ["same (0.000 Å)", "across (0.400 Å)", "atoms (0.300 Å)"]


def test_collect_keeps_labels_with_their_crystals():
    report = ImportReport("test")
    crystals = [("a", SALT), ("b", "broken"), ("c", UnusableCrystalError("unreadable", "why")), ("d", SALT)]
    raw = collect(crystals, {"gap": [1.0, 2.0, 3.0, 4.0]}, report)
    assert raw.ids.to_pylist() == ["a", "d"]
    assert raw.labels["gap"].tolist() == [1.0, 4.0]
    assert report.num_read == 4
    assert [str(item) for item in report.left_out] == ["b (str)", "c (why)"]
    with pytest.raises(ValueError, match=r"(?s)no usable crystal.*unreadable: 1"):
        collect(crystals[2:3], {}, ImportReport("test"))

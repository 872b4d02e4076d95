import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Lattice, Structure

from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.structures import sites_of

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


def test_a_slab_of_pymatgen_is_no_crystal_either():
    slab = Structure(Lattice.cubic(4.1, pbc=(True, True, False)), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(UnusableCrystalError, match="not periodic in three directions"):
        sites_of(slab)


@pytest.mark.parametrize("share", ["x", float("nan"), None, 0.5])
def test_an_occupancy_that_is_not_known_to_be_full(share):
    atoms = Atoms("Na", cell=np.eye(3) * 4, pbc=True, info={"occupancy": {"0": {"Na": share}}})
    dictionary = SALT.as_dict()
    dictionary["sites"][0]["species"][0]["occu"] = share
    for form in (atoms, dictionary):
        with pytest.raises(UnusableCrystalError, match="partial occupancy"):
            sites_of(form)

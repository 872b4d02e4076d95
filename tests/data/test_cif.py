import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifParser, CifWriter

from pyg_dim.data.cif import MAX_IMAGES, fast_sites, parse_cif
from pyg_dim.data.raw import UnusableCrystalError

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
TRICLINIC = Structure(
    Lattice.from_parameters(4.1, 5.2, 6.3, 77, 84, 103),
    ["Li", "O", "P", "O", "Fe"],
    np.random.default_rng(0).uniform(-2, 2, (5, 3)),
)


def by_pymatgen(text, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CifParser.from_str(text, **options).parse_structures(primitive=False)[0]


def assert_same(sites, structure, tolerance=1e-10):
    """The same cell, and the same sites in any order, modulo the cell."""
    z, pos, cell = sites
    np.testing.assert_allclose(cell, structure.lattice.matrix, atol=tolerance)
    assert len(z) == len(structure)
    fractional = pos @ np.linalg.inv(cell)
    others = np.array(structure.atomic_numbers)
    for element in np.unique(z):
        difference = fractional[z == element][:, None] - structure.frac_coords[others == element]
        distance = np.linalg.norm((difference - np.round(difference)) @ cell, axis=2)
        assert distance.min(axis=1).max() < tolerance
        assert distance.min(axis=0).max() < tolerance


@pytest.mark.parametrize("decorated", [False, True], ids=["elements", "with oxidation states"])
@pytest.mark.parametrize("structure", [SALT, TRICLINIC], ids=["salt", "triclinic"])
def test_the_fast_path_gives_what_pymatgen_reads(structure, decorated):
    structure = structure.copy()
    if decorated:
        structure.add_oxidation_state_by_guess()
    text = str(CifWriter(structure))
    found = fast_sites(text)
    assert found is not None
    assert_same(found, by_pymatgen(text))
    assert_same(found, structure.__class__(by_pymatgen(text).lattice, structure.species, structure.frac_coords), 1e-6)
    assert fast_sites(text.replace("\n", "\r\n"))[1].tolist() == found[1].tolist()
    fractional = found[1] @ np.linalg.inv(found[2])
    assert -1e-12 < fractional.min() < fractional.max() < 1
    # In the order of the file.
    assert found[0].tolist() == list(structure.atomic_numbers)


def test_older_writers():
    text = str(CifWriter(SALT)).replace("# generated", "#generated").replace("0  1\n", "0  1.0\n")
    text = text.replace("  1  0.", "  1  -0.").replace("'P 1'", "P1").replace("'x, y, z'", "'x,y,z'")
    found = fast_sites(text)
    assert found is not None
    assert_same(found, by_pymatgen(text))


def test_coordinates_near_thirds_are_not_moved_without_symmetry():
    structure = Structure(Lattice.cubic(10), ["Na", "Cl"], [[0.33334, 0.66667, 0.1], [0.9, 0.9, 0.9]])
    found = fast_sites(str(CifWriter(structure)))
    np.testing.assert_allclose(found[1], structure.cart_coords, atol=1e-7)
    assert_same(found, by_pymatgen(str(CifWriter(structure)), frac_tolerance=0))
    # What the docstring says of pymatgen.
    assert np.abs(by_pymatgen(str(CifWriter(structure))).cart_coords - structure.cart_coords).max() > 5e-5


FALLBACKS = {
    "symmetry": str(CifWriter(SALT, symprec=0.01)),
    "partial occupancy": str(CifWriter(SALT)).replace("  1\n  Na  Na1", "  0.5\n  Na  Na1"),
    "a block more": str(CifWriter(SALT)) + str(CifWriter(TRICLINIC)),
    "few digits": str(CifWriter(SALT, significant_figures=4)),
    "uncertainties": str(CifWriter(SALT)).replace("0.50000000", "0.50000000(2)"),
    "a magnetic file": str(CifWriter(SALT, write_magmoms=True)) + "loop_\n _atom_site_moment_label\n  Na0\n",
    "an operation more": str(CifWriter(SALT)).replace("  1  'x, y, z'", "  1  'x, y, z'\n  2  '-x, -y, -z'"),
    "another operation": str(CifWriter(SALT)).replace("'x, y, z'", "'-x, -y, -z'"),
    "another space group": str(CifWriter(SALT)).replace("'P 1'", "'P -1'"),
    "a tag that is not known": str(CifWriter(SALT)).replace("_cell_volume", "_cell_measurement_temperature"),
    "a quoted label": str(CifWriter(SALT)).replace("Na0 ", "'Na 0'"),
    "a comment among the sites": str(CifWriter(SALT)) + "# end\n",
    "another column": str(CifWriter(SALT)).replace("_atom_site_occupancy", "_atom_site_calc_flag"),
    "no element": str(CifWriter(SALT)).replace("  Na  Na0", "  Xx  Na0"),
    "sites that coincide": str(CifWriter(SALT)).replace(
        "  Na  Na1  1  0.50000000  0.50000000", "  Na  Na1  1  0.00005000  1.00000000"
    ),
    "a flat cell": str(CifWriter(SALT)).replace("_cell_angle_alpha   90.", "_cell_angle_alpha   00."),
    "a tiny cell": str(CifWriter(SALT)).replace("_cell_length_a   5.6", "_cell_length_a   0.0"),
    "an impossible cell": str(CifWriter(SALT)).replace("_cell_angle_alpha   90.", "_cell_angle_alpha   179."),
    "cut off": str(CifWriter(SALT))[:-30],
    "empty": "",
}


@pytest.mark.parametrize("text", FALLBACKS.values(), ids=FALLBACKS)
def test_whatever_is_not_certain_is_left_to_pymatgen(text):
    assert fast_sites(text) is None


def test_what_the_fallback_reads():
    for name in ("symmetry", "few digits", "uncertainties", "another operation", "a quoted label"):
        (z, _, cell), remark = parse_cif(FALLBACKS[name])
        assert sorted(z) == [11] * 4 + [17] * 4, name
        assert abs(np.linalg.det(cell)) == pytest.approx(5.6**3)
        assert not remark
    assert parse_cif(FALLBACKS["a block more"])[1] == "more than one structure in the file, the first was read"


@pytest.mark.parametrize(
    ("name", "reason", "detail"),
    [
        ("partial occupancy", "partial occupancy", "Na"),
        ("sites that coincide", "unreadable CIF", "Occupancy 2.0 exceeded tolerance"),
        ("a tiny cell", "unreadable CIF", "No structure parsed"),
        ("cut off", "unreadable CIF", ""),
        ("empty", "unreadable CIF", "no structure in it"),
        ("no element", "unknown or unsupported element", "Xx"),
    ],
)
def test_what_cannot_be_used_says_why(name, reason, detail):
    with pytest.raises(UnusableCrystalError) as error:
        parse_cif(FALLBACKS[name])
    assert error.value.reason == reason
    assert detail in error.value.detail


def test_a_block_without_sites_comes_first_in_files_of_journals():
    text = "data_global\n_journal_name_full 'Acta'\n" + str(CifWriter(SALT, symprec=0.01))
    (z, _, _), remark = parse_cif(text)
    assert len(z) == 8
    assert not remark


def test_files_that_would_take_minutes_are_refused():
    rows = "".join(f"  C  C{k}  1  {k / 9973 % 1:.4f}  {k / 7919 % 1:.4f}  0.1000  1\n" for k in range(MAX_IMAGES + 1))
    head = str(CifWriter(SALT)).partition("  Na  Na0")[0]
    with pytest.raises(UnusableCrystalError) as error:
        parse_cif(head + rows)
    assert error.value.reason == "too many sites times symmetry operations"
    with pytest.raises(UnusableCrystalError, match="quotation marks"):
        parse_cif(head + "'a" * 20_000)


def test_endless_symmetry_operations_are_refused():
    text = FALLBACKS["symmetry"].replace("'-x, -y, -z'", f"'-x, -y, -z+{'9' * 100_000}'")
    for endless in (
        text,
        text.replace("data_NaCl", "data_x").replace("_atom_site", "_x") + FALLBACKS["symmetry"],
    ):
        with pytest.raises(UnusableCrystalError, match="a symmetry operation of 1000"):
            parse_cif(endless)
    magnetic = "loop_\n_space_group_symop_magn_{}.xyz\n" + "x,y,z,+1\n" * 100
    with pytest.raises(UnusableCrystalError, match="too many sites times symmetry operations"):
        parse_cif(FALLBACKS["symmetry"] + magnetic.format("operation") + magnetic.format("centering"))


def test_a_million_empty_lines_take_no_time():
    text = FALLBACKS["symmetry"].replace("_cell_length_a", "\n" * 500_000 + " \n" * 500_000 + "_cell_length_a")
    assert len(parse_cif(text)[0][0]) == 8


def test_real_crystals_written_and_read_back(shared):
    table = pq.read_table(shared("data/mp36k.parquet")).slice(0, 31_900).take(list(range(0, 31_900, 110)))
    fast = 0
    for row in table.to_pylist():
        structure = Structure(
            Lattice(np.array(row["lattice_vectors"], dtype=float)),
            row["species_at_sites"],
            np.array(row["cartesian_site_positions"], dtype=float),
            coords_are_cartesian=True,
        )
        text = str(CifWriter(structure))
        found = fast_sites(text)
        fast += found is not None
        assert_same(found, by_pymatgen(text, frac_tolerance=0))
    assert fast == len(table) == 290

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.reading import open_sources, read_crystals
from pyg_dim.data.sources.labels import split_unit

CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cifs").mkdir()
    for name in "abc":
        CSCL.to(str(tmp_path / "cifs" / f"{name}.cif"))
    return tmp_path / "cifs"


def read(folder, text, **options):
    file = folder.parent / "labels.csv"
    file.write_text(text, encoding="utf-8")
    return read_crystals(open_sources([folder], labels=file, **options), ImportOptions(50))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gap (eV)", ("gap", "eV")),
        ("gap [eV]", ("gap", "eV")),
        ("formation energy (eV/atom)", ("formation energy", "eV/atom")),
        ("log10(K_VRH)", ("log10(K_VRH)", "")),
        ("gap", ("gap", "")),
        ("gap ()", ("gap ()", "")),
        ("(eV)", ("(eV)", "")),
        ("last phdos peak", ("last phdos peak", "")),
    ],
)
def test_units_in_names(name, expected):
    assert split_unit(name) == expected


def test_labels_join_by_name_of_the_file(folder):
    raw, report = read(folder, "file,gap (eV),note\nc.cif,3,x\na,1,y\nz,9,z\n")
    assert raw.ids.to_pylist() == ["a", "b", "c"]
    np.testing.assert_array_equal(raw.labels["gap"], [1, np.nan, 3])
    assert raw.units == {"gap": "eV"}
    assert report.notes == [
        "column 'note' is not numeric and was not read",
        "labels.csv: 1 crystals without a line, their labels are missing (b)",
        "labels.csv: 1 lines without a crystal (z)",
    ]


def test_labels_join_by_name_with_the_ending_of_any_structure_file(folder):
    CSCL.to(str(folder / "d.vasp"), fmt="poscar")
    raw, report = read(folder, "file,gap\na.CIF,1\nb.cif,2\nc,3\nd.vasp,4\n")
    assert raw.labels["gap"].tolist() == [1, 2, 3, 4]
    assert report.notes == []


def test_the_column_of_identifiers_can_be_another_and_units_can_be_given(folder):
    text = "gap [eV],name,energy\n1,a,-1\n2,b,-2\n3,c,-3\n"
    raw, _ = read(folder, text, labels_id="name", units={"energy": "eV/atom", "gap": "Ha"})
    assert raw.labels["gap"].tolist() == [1, 2, 3]
    assert raw.units == {"gap": "Ha", "energy": "eV/atom"}
    with pytest.raises(ValueError, match=r"labels\.csv has no column 'id'; its columns are 'gap \[eV\]', 'name'"):
        read(folder, text, labels_id="id")


def test_labels_of_the_table_replace_those_of_the_source(folder):
    (folder / "id_prop.csv").write_text("id,gap,energy\na,5,7\nb,6,8\nc,7,9\n")
    raw, _ = read(folder, "id,gap\na,1\nb,2\n")
    np.testing.assert_array_equal(raw.labels["gap"], [1, 2, 7])
    np.testing.assert_array_equal(raw.labels["energy"], [7, 8, 9])


@pytest.mark.parametrize("text", ["", "id\na\n", "id,gap,gap (eV)\na,1,2\n", "id,,gap\na,1,2\n"])
def test_tables_that_cannot_be_joined(folder, text):
    with pytest.raises(ValueError, match=r"labels\.csv: "):
        read(folder, text)


def test_a_table_that_is_not_there(folder):
    with pytest.raises(FileNotFoundError, match=r"no such file of labels: nowhere\.csv"):
        open_sources([folder], labels="nowhere.csv")


def test_a_table_of_other_crystals_names_the_column_that_fits(folder):
    # The first column has the same number twice: such a line is not used, and yet it is counted here.
    text = "gap,run,crystal name\n1,7,a.cif\n1,8,b\n2,9,z\n"
    said = (
        r"labels\.csv: no line is that of a crystal by its column 'gap'; column 'crystal name' matches 2 of 3 crystals"
    )
    with pytest.raises(ValueError, match=rf"{said}: add --labels-id 'crystal name'$"):
        read(folder, text)
    with pytest.raises(ValueError, match=r"by its column 'gap'; column 'file' matches 1 of 3 crystals"):
        read(folder, "gap,file\n1,a\n")
    with pytest.raises(
        ValueError, match=r"by its column 'run'; column 'id' matches 1 of 3 crystals: add --labels-id id$"
    ):
        read(folder, "id,run,gap\na,7,1\n", labels_id="run")
    with pytest.raises(ValueError, match=r"by its column 'id', which has x, y; the crystals are called a, b, c$"):
        read(folder, "id,gap\nx,7\ny,8\n")


def test_semicolons_are_asked_for(folder):
    with pytest.raises(ValueError, match=r"at least one label; is it separated by semicolons\? Write commas"):
        read(folder, "crystal;gap\na;1,5\n")
    (folder / "id_prop.csv").write_text("a;1\nb;2\n")
    with pytest.raises(ValueError, match=r"id_prop\.csv: .*is it separated by semicolons\?"):
        open_sources([folder])


def test_labels_without_a_number_are_told(folder, caplog):
    read(folder, "id,gap,note,none\na,1,x,\nb,nan,1_0,\n")
    assert "labels.csv: no number in 'note' ('x'), 'none' (empty): no label is read from there" in caplog.text
    with pytest.raises(
        ValueError, match=r"no column of labels has a number: 'gap' \('8,5'\); write numbers with a point"
    ):
        read(folder, 'id,gap\na,"8,5"\nb,"7,1"\n')

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data import load_dataset
from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.reading import open_sources, read_crystals

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
MIXED = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


def read(*sources, **options):
    return read_crystals(open_sources(sources, **options), ImportOptions(50))


@pytest.fixture
def folder(tmp_path):
    """Two good files, one with partial occupancy, three that are broken in different ways."""
    SALT.to(str(tmp_path / "salt.cif"))
    CSCL.to(str(tmp_path / "cscl.CIF"), fmt="cif")
    MIXED.to(str(tmp_path / "mixed.cif"))
    (tmp_path / "empty.cif").write_text("")
    (tmp_path / "text.cif").write_text("this is no CIF\n")
    (tmp_path / "cut.cif").write_text((tmp_path / "salt.cif").read_text()[:400])
    (tmp_path / "notes.txt").write_text("not a crystal")
    return tmp_path


def test_good_files_are_read_and_bad_ones_reported(folder):
    raw, report = read(folder)
    assert raw.ids.to_pylist() == ["cscl", "salt"]
    assert raw.species_counts.tolist() == [2, 2]
    assert report.num_read == 6
    assert report.counts() == {"unreadable CIF": 3, "partial occupancy": 1}
    assert {item.id for item in report.left_out} == {"empty", "text", "cut", "mixed"}
    np.testing.assert_allclose(np.abs(np.linalg.det(raw.cell)), [4.1**3, 5.6**3 / 4], rtol=1e-6)


def test_bytes_that_are_no_text_are_reported(tmp_path):
    CSCL.to(str(tmp_path / "good.cif"))
    (tmp_path / "binary.cif").write_bytes(bytes(range(256)))
    _, report = read(tmp_path)
    assert [(item.id, item.reason) for item in report.left_out] == [("binary", "unreadable CIF")]


def test_labels_beside_the_files(folder):
    (folder / "id_prop.csv").write_text("salt, 5.0\nother,1\nmixed,3\n\n")
    raw, report = read(folder)
    np.testing.assert_array_equal(raw.labels["target"], [np.nan, 5.0])
    missing = "id_prop.csv: 4 crystals without a line, their labels are missing (cscl, cut, empty, ...)"
    assert report.notes[:2] == [missing, "id_prop.csv: 1 lines without a crystal (other)"]


def test_identifiers_may_have_the_ending_of_the_file(folder):
    (folder / "id_prop.csv").write_text("salt.cif,5.0\ncscl.CIF,1\n")
    raw, report = read(folder)
    assert dict(zip(raw.ids.to_pylist(), raw.labels["target"], strict=True))["salt"] == 5.0
    assert not any("without a crystal" in note for note in report.notes)


def test_named_labels_and_unreadable_values(folder):
    (folder / "id_prop.csv").write_text("id,gap,energy\nsalt,5.0,nan\ncscl,wide,-3\n")
    raw, report = read(folder)
    np.testing.assert_array_equal(raw.labels["gap"], [np.nan, 5.0])
    np.testing.assert_array_equal(raw.labels["energy"], [-3, np.nan])
    assert "label gap: 1 values that are no number, treated as missing (cscl: wide)" in report.all_notes()


def test_malformed_lines_of_labels_are_reported_by_number_and_not_used(folder):
    # A decimal comma, an identifier that comes again, none at all, and a line cut short; too many commas do no harm.
    (folder / "id_prop.csv").write_text("cscl,1.5,,\n\nsalt,5,0\ncscl,2\n,3\nmixed\n")
    raw, report = read(folder)
    assert list(raw.labels) == ["target", "target_2", "target_3"]
    assert report.notes[0] == (
        "id_prop.csv: 4 lines not used (line 3: 3 fields, not 4, line 4: cscl once more, line 5: no identifier, ...)"
    )
    np.testing.assert_array_equal(raw.labels["target"], [1.5, np.nan])

    (folder / "id_prop.csv").write_text("id,gap,\ncscl,1.5,\nsalt,5,0\n")
    raw, report = read(folder)
    assert report.notes[0] == "id_prop.csv: 1 lines not used (line 3: 3 fields, not 2)"
    assert list(raw.labels) == ["gap"]
    np.testing.assert_array_equal(raw.labels["gap"], [1.5, np.nan])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"salt\n", r"id_prop\.csv: expected lines"),
        (b"", r"id_prop\.csv: expected lines"),
        (
            "id,gap\nsalt,5\nandré,1\n".encode("latin-1"),
            r"id_prop\.csv, line 3: not UTF-8 text .*save the file as UTF-8",
        ),
        (b"id,gap,gap\nsalt,5,6\n", r"id_prop\.csv: the first line must give every column of labels a name of its own"),
        (b"id,,gap\nsalt,5,6\n", r"id_prop\.csv: the first line must"),
        (b"salt,1\n" + b"x" * 200_000, r"id_prop\.csv, line 2: field larger"),
    ],
    ids=["no value", "empty", "latin-1", "same names", "no name", "endless field"],
)
def test_a_label_file_that_cannot_be_read_is_an_error(folder, content, message):
    (folder / "id_prop.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(folder)


def test_labels_may_start_with_a_byte_order_mark(folder):
    (folder / "id_prop.csv").write_bytes("salt,5\r\n".encode("utf-8-sig"))
    raw, _ = read(folder)
    np.testing.assert_array_equal(raw.labels["target"], [np.nan, 5.0])


def test_sites_that_coincide_are_reported(tmp_path):
    CSCL.to(str(tmp_path / "good.cif"))
    Structure(Lattice.cubic(4), ["Cs", "Cl", "Cl"], [[0, 0, 0.02], [0, 0, 0.95], [0.5, 0.5, 0.5]]).to(
        str(tmp_path / "close.cif")
    )
    raw, report = read(tmp_path)
    assert raw.ids.to_pylist() == ["good"]
    assert [(item.reason, str(item)) for item in report.left_out] == [
        ("sites nearer than 0.5 Å", "close (0.280 Å)"),
    ]


def test_folder_without_a_usable_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no CIF file"):
        read(tmp_path)
    (tmp_path / "bad.cif").write_text("nothing")
    with pytest.raises(ValueError, match=r"(?s)no usable crystal.*unreadable CIF: 1 \(bad"):
        load_dataset(tmp_path)

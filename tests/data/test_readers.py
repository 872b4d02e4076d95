import gzip
import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data.raw import keep_sound
from pyg_dim.data.readers import read_cif_folder, read_matbench_json

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
MIXED = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


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
    raw, report = read_cif_folder(folder)
    assert raw.ids.to_pylist() == ["cscl", "salt"]
    assert raw.species_counts.tolist() == [2, 2]
    assert report.num_read == 6
    assert report.counts() == {"unreadable CIF": 3, "partial occupancy": 1}
    assert {item.id for item in report.left_out} == {"empty", "text", "cut", "mixed"}
    np.testing.assert_allclose(np.abs(np.linalg.det(raw.cell)), [4.1**3, 5.6**3 / 4], rtol=1e-6)


def test_bytes_that_are_no_text_are_reported(tmp_path):
    CSCL.to(str(tmp_path / "good.cif"))
    (tmp_path / "binary.cif").write_bytes(bytes(range(256)))
    _, report = read_cif_folder(tmp_path)
    assert [(item.id, item.reason) for item in report.left_out] == [("binary", "unreadable CIF")]


def test_labels_beside_the_files(folder):
    (folder / "id_prop.csv").write_text("salt, 5.0\nother,1\nmixed,3\n\n")
    raw, report = read_cif_folder(folder)
    np.testing.assert_array_equal(raw.labels["target"], [np.nan, 5.0])
    missing = "id_prop.csv: 4 CIF files without a line, their labels are missing (cscl, cut, empty, ...)"
    assert report.notes[:2] == [missing, "id_prop.csv: 1 lines without a CIF file (other)"]


def test_identifiers_may_have_the_ending_of_the_file(folder):
    (folder / "id_prop.csv").write_text("salt.cif,5.0\ncscl.CIF,1\n")
    raw, report = read_cif_folder(folder)
    assert dict(zip(raw.ids.to_pylist(), raw.labels["target"], strict=True))["salt"] == 5.0
    assert not any("without a CIF file" in note for note in report.notes)


def test_named_labels_and_unreadable_values(folder):
    (folder / "id_prop.csv").write_text("id,gap,energy\nsalt,5.0,nan\ncscl,wide,-3\n")
    raw, report = read_cif_folder(folder)
    np.testing.assert_array_equal(raw.labels["gap"], [np.nan, 5.0])
    np.testing.assert_array_equal(raw.labels["energy"], [-3, np.nan])
    assert "id_prop.csv: 1 values that are no number, treated as missing (line 3: wide)" in report.notes


def test_malformed_lines_of_labels_are_reported_by_number_and_not_used(folder):
    # A decimal comma, an identifier that comes again, none at all, and a line cut short; too many commas do no harm.
    (folder / "id_prop.csv").write_text("cscl,1.5,,\n\nsalt,5,0\ncscl,2\n,3\nmixed\n")
    raw, report = read_cif_folder(folder)
    assert list(raw.labels) == ["target", "target_2", "target_3"]
    assert report.notes[0] == (
        "id_prop.csv: 4 lines not used (line 3: 3 fields, not 4, line 4: cscl once more, line 5: no identifier, ...)"
    )
    np.testing.assert_array_equal(raw.labels["target"], [1.5, np.nan])

    (folder / "id_prop.csv").write_text("id,gap,\ncscl,1.5,\nsalt,5,0\n")
    raw, report = read_cif_folder(folder)
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
        read_cif_folder(folder)


def test_labels_may_start_with_a_byte_order_mark(folder):
    (folder / "id_prop.csv").write_bytes("salt,5\r\n".encode("utf-8-sig"))
    raw, _ = read_cif_folder(folder)
    np.testing.assert_array_equal(raw.labels["target"], [np.nan, 5.0])


def test_sites_that_coincide_are_reported(tmp_path):
    CSCL.to(str(tmp_path / "good.cif"))
    Structure(Lattice.cubic(4), ["Cs", "Cl", "Cl"], [[0, 0, 0.02], [0, 0, 0.95], [0.5, 0.5, 0.5]]).to(
        str(tmp_path / "close.cif")
    )
    raw, report = read_cif_folder(tmp_path)
    assert raw.ids.to_pylist() == ["good"]
    assert [(item.reason, str(item)) for item in report.left_out] == [
        ("sites nearer than 0.5 Å", "close (0.280 Å)"),
    ]


def test_folder_without_a_usable_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        read_cif_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no CIF file"):
        read_cif_folder(tmp_path)
    (tmp_path / "bad.cif").write_text("nothing")
    with pytest.raises(ValueError, match=r"(?s)no usable crystal.*unreadable CIF: 1 \(bad"):
        read_cif_folder(tmp_path)


def split_json(structures, **columns):
    names = ["structure", *columns]
    data = [list(row) for row in zip([s.as_dict() for s in structures], *columns.values(), strict=True)]
    return json.dumps({"index": list(range(len(data))), "columns": names, "data": data}).encode()


@pytest.mark.parametrize("compressed", [True, False])
def test_matbench_file(tmp_path, compressed):
    content = split_json(
        [SALT, MIXED, CSCL],
        **{"last phdos peak": [98.5, 2.0, None], "metal": [False, True, True]},
        kind=["a", "b", "c"],
    )
    path = tmp_path / ("m.json.gz" if compressed else "m.json")
    path.write_bytes(gzip.compress(content) if compressed else content)
    raw, report = read_matbench_json(path)
    assert raw.ids.to_pylist() == ["0", "2"]
    assert raw.species_counts.tolist() == [2, 2]
    np.testing.assert_array_equal(raw.labels["last phdos peak"], [98.5, np.nan])
    assert raw.labels["metal"].tolist() == [0, 1]
    assert list(raw.labels) == ["last phdos peak", "metal"]
    assert report.counts() == {"partial occupancy": 1}
    assert "column 'kind' is not numeric and was not read" in report.notes
    # NaN labels, here from null, go through the checks and stay missing.
    assert np.isnan(keep_sound(raw, report, 50).labels["last phdos peak"][1])


def test_other_json_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "m.json.gz"
    with pytest.raises(FileNotFoundError, match=r"m\.json\.gz"):
        read_matbench_json(path)
    for content, found in (
        (b"{}", "an object with nothing"),
        (b"[1]", "no object"),
        (b'"index, columns, data"', "no object"),
        (gzip.compress(b'{"index": []}'), "an object with index"),
        (b'{"index": 1, "columns": null, "data": []}', "an object with index, columns, data"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"m\.json\.gz is no pandas 'split' JSON.*found {found}; write it by"):
            read_matbench_json(path)
    path.write_bytes(json.dumps({"index": [0], "columns": ["composition", "gap"], "data": [["NaCl", 1]]}).encode())
    with pytest.raises(ValueError, match="no column 'structure'; its columns are 'composition', 'gap'"):
        read_matbench_json(path)


def test_damaged_json_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "m.json.gz"
    packed = bytearray(gzip.compress(split_json([SALT, CSCL], gap=[1.0, 2.0])))
    flipped = packed.copy()
    flipped[len(packed) // 2] ^= 0xFF
    for content in (
        b"no json",
        b"",
        b"\x1f\x8bbroken",
        b'{"index": "caf\xe9"}',
        b"[" * 100_000,
        packed[: len(packed) // 2],
        packed[:-4],
        flipped,
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.json\.gz is no readable JSON.*if it is damaged"):
            read_matbench_json(path)


def test_rows_that_do_not_fit_the_columns_are_left_out(tmp_path):
    path = tmp_path / "m.json"
    rows = [[SALT.as_dict(), 1.0], [CSCL.as_dict()], [CSCL.as_dict(), 2.0, 3.0], 7, [CSCL.as_dict(), 4.0]]
    path.write_text(json.dumps({"index": list("abcde"), "columns": ["structure", "gap"], "data": rows}))
    raw, report = read_matbench_json(path)
    assert raw.ids.to_pylist() == ["a", "e"]
    assert raw.labels["gap"].tolist() == [1, 4]
    assert report.counts() == {"row does not fit the columns": 3}
    assert [str(item) for item in report.left_out] == [
        "b (row 2: 1 values for 2 columns)",
        "c (row 3: 3 values for 2 columns)",
        "d (row 4: int for 2 columns)",
    ]


def test_index_and_names_must_fit_the_rows(tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"index": [0], "columns": ["structure"], "data": []}))
    with pytest.raises(ValueError, match=r"m\.json: 1 entries in 'index' for 0 in 'data'"):
        read_matbench_json(path)
    path.write_text(json.dumps({"index": [], "columns": ["structure", "gap", "gap"], "data": []}))
    with pytest.raises(ValueError, match=r"m\.json has columns of the same name: structure, gap, gap"):
        read_matbench_json(path)


def test_numbers_beyond_all_bounds_spoil_one_crystal_alone(tmp_path):
    path = tmp_path / "m.json"
    far = CSCL.as_dict()
    far["sites"][0]["abc"][0] = 10**400
    rows = [[SALT.as_dict(), 1.0], [far, 2.0], [CSCL.as_dict(), 10**400]]
    path.write_text(json.dumps({"index": list("abc"), "columns": ["structure", "gap"], "data": rows}))
    raw, report = read_matbench_json(path)
    assert [item.id for item in report.left_out] == ["b"]
    assert raw.labels["gap"].tolist() == [1, np.inf]


def test_the_official_file(shared):
    raw, report = read_matbench_json(shared("data/matbench_phonons.json.gz"))
    assert len(raw.ids) == report.num_read == 1265
    assert list(raw.labels) == ["last phdos peak"]
    assert raw.labels["last phdos peak"][0] == pytest.approx(98.58577122703691)

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
    assert "id_prop.csv: 4 CIF files without a line, their labels are missing" in report.notes
    assert "id_prop.csv: 1 lines without a CIF file" in report.notes


def test_named_labels_and_unreadable_values(folder):
    (folder / "id_prop.csv").write_text("id,gap,energy\nsalt,5.0,nan\ncscl,wide,-3\n")
    raw, report = read_cif_folder(folder)
    np.testing.assert_array_equal(raw.labels["gap"], [np.nan, 5.0])
    np.testing.assert_array_equal(raw.labels["energy"], [-3, np.nan])
    assert "id_prop.csv: 1 values that are no number, treated as missing" in report.notes


def test_a_label_file_without_values_is_an_error(folder):
    (folder / "id_prop.csv").write_text("salt\n")
    with pytest.raises(ValueError, match=r"id_prop\.csv: expected lines"):
        read_cif_folder(folder)


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
    for content in (b"no json", b"{}", b"[1]", gzip.compress(b'{"index": []}'), b"\x1f\x8bbroken"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.json\.gz is no pandas 'split' JSON"):
            read_matbench_json(path)
    path.write_bytes(json.dumps({"index": [0], "columns": ["composition", "gap"], "data": [["NaCl", 1]]}).encode())
    with pytest.raises(ValueError, match="no column 'structure'; its columns are 'composition', 'gap'"):
        read_matbench_json(path)


def test_the_official_file(shared):
    raw, report = read_matbench_json(shared("data/matbench_phonons.json.gz"))
    assert len(raw.ids) == report.num_read == 1265
    assert list(raw.labels) == ["last phdos peak"]
    assert raw.labels["last phdos peak"][0] == pytest.approx(98.58577122703691)

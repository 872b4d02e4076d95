import gzip
import json

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.reading import open_sources, read_crystals

SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
MIXED = Structure(Lattice.cubic(3.8), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


def read(path):
    return read_crystals(open_sources([path]), ImportOptions(50))


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
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["0", "2"]
    assert raw.species_counts.tolist() == [2, 2]
    np.testing.assert_array_equal(raw.labels["last phdos peak"], [98.5, np.nan])
    assert raw.labels["metal"].tolist() == [0, 1]
    assert list(raw.labels) == ["last phdos peak", "metal"]
    assert report.counts() == {"partial occupancy": 1}
    assert "column 'kind' is not numeric and was not read" in report.notes


def test_other_json_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "m.json.gz"
    with pytest.raises(FileNotFoundError, match=r"m\.json\.gz"):
        read(path)
    for content, found in (
        (b"{}", "an object with nothing"),
        (b"[1]", "no object"),
        (b'"index, columns, data"', "no object"),
        (gzip.compress(b'{"index": []}'), "an object with index"),
        (b'{"index": 1, "columns": null, "data": [1]}', "an object with index, columns, data"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"m\.json\.gz is no pandas 'split' JSON.*found {found}; write it by"):
            read(path)
    path.write_bytes(json.dumps({"index": [0], "columns": ["composition", "gap"], "data": [["NaCl", 1]]}).encode())
    with pytest.raises(ValueError, match="no column 'structure'; its columns are 'composition', 'gap'"):
        read(path)


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
            read(path)


def test_rows_that_do_not_fit_the_columns_are_left_out(tmp_path):
    path = tmp_path / "m.json"
    rows = [[SALT.as_dict(), 1.0], [CSCL.as_dict()], [CSCL.as_dict(), 2.0, 3.0], 7, [CSCL.as_dict(), 4.0]]
    path.write_text(json.dumps({"index": list("abcde"), "columns": ["structure", "gap"], "data": rows}))
    raw, report = read(path)
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
        read(path)
    path.write_text(json.dumps({"index": [], "columns": ["structure", "gap", "gap"], "data": []}))
    with pytest.raises(ValueError, match=r"m\.json has columns of the same name: structure, gap, gap"):
        read(path)


def test_numbers_beyond_all_bounds_spoil_one_crystal_alone(tmp_path):
    path = tmp_path / "m.json"
    far = CSCL.as_dict()
    far["sites"][0]["abc"][0] = 10**400
    rows = [[SALT.as_dict(), 1.0], [far, 2.0], [CSCL.as_dict(), 10**400]]
    path.write_text(json.dumps({"index": list("abc"), "columns": ["structure", "gap"], "data": rows}))
    raw, report = read(path)
    assert [str(item) for item in report.left_out if item.id == "c"] == ["c (gap = inf)"]
    assert raw.ids.to_pylist() == ["a"]


@pytest.mark.parametrize(
    "order", [("data", "index", "columns"), ("columns", "data", "index"), ("index", "data", "columns")]
)
def test_keys_may_come_in_any_order(tmp_path, order):
    content = json.loads(split_json([SALT, CSCL], gap=[1.0, 2.0])) | {"index": ["a", "b"]}
    (tmp_path / "m.json").write_text(json.dumps({key: content[key] for key in order}, indent=2))
    raw, _ = read(tmp_path / "m.json")
    assert raw.ids.to_pylist() == ["a", "b"]
    assert raw.labels["gap"].tolist() == [1, 2]


def test_values_that_straddle_what_is_read_at_a_time(tmp_path, monkeypatch):
    names = [f"é{k}" * 7 for k in range(40)]
    content = json.loads(split_json([SALT, CSCL] * 20, gap=[12345.678] * 40)) | {"index": names}
    content = {"version": 1234567890123, **content}
    (tmp_path / "m.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    whole, _ = read(tmp_path / "m.json")
    monkeypatch.setattr("pyg_dim.data.sources.split_json._BLOCK", 7)
    raw, _ = read(tmp_path / "m.json")
    assert raw.ids.to_pylist() == whole.ids.to_pylist() == names
    assert raw.labels["gap"].tolist() == [12345.678] * 40
    np.testing.assert_array_equal(raw.pos, whole.pos)


def test_units_in_names_of_columns(tmp_path):
    content = json.loads(split_json([CSCL], **{"gap (eV)": [1.0]}))
    (tmp_path / "m.json").write_text(json.dumps(content))
    raw, _ = read(tmp_path / "m.json")
    assert raw.labels["gap"].tolist() == [1]
    assert raw.units == {"gap": "eV"}


def test_the_official_file(shared):
    raw, report = read(shared("data/matbench_phonons.json.gz"))
    assert len(raw.ids) == report.num_read == 1265
    assert list(raw.labels) == ["last phdos peak"]
    assert raw.labels["last phdos peak"][0] == pytest.approx(98.58577122703691)


def test_a_label_in_two_units_is_refused(tmp_path):
    (tmp_path / "m.json").write_bytes(split_json([SALT], **{"gap (eV)": [1.5], "gap (meV)": [1500.0]}))
    with pytest.raises(ValueError, match=r"m\.json has columns of the same name, units aside: gap"):
        read(tmp_path / "m.json")


def test_sources_in_two_units_are_refused(tmp_path):
    for name, column, value in (("a", "gap (eV)", 1.5), ("b", "gap (meV)", 1500.0)):
        (tmp_path / f"{name}.json").write_bytes(split_json([SALT], **{column: [value]}))
    with pytest.raises(ValueError, match=r"b\.json gives the label gap in meV, another source in eV"):
        read_crystals(open_sources([tmp_path / "a.json", tmp_path / "b.json"]), ImportOptions(50))


def test_what_is_a_number_to_python_alone_is_none(tmp_path):
    (tmp_path / "m.json").write_bytes(split_json([SALT, CSCL], gap=["1_000", "2.5"]))
    raw, _ = read(tmp_path / "m.json")
    assert "gap" not in raw.labels or np.isnan(raw.labels["gap"][0])

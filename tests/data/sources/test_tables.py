import csv
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data import load_dataset
from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.reading import open_sources, read_crystals

SALT = Structure(Lattice.rhombohedral(3.96, 60), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def read(path, **options):
    return read_crystals(open_sources([path], **options), ImportOptions(50))


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def test_csv_with_cifs_as_generative_models_publish_them(tmp_path):
    rows = [
        ["", "material_id", "formation_energy_per_atom (eV/atom)", "band_gap", "pretty_formula", "elements", "cif"],
        ["0", "mp-22862", "-2.1", "5.0", "NaCl", "['Na', 'Cl']", SALT.to(fmt="cif")],
        ["1", "mp-22865", "-2.3", "", "CsCl", "['Cs', 'Cl']", CSCL.to(fmt="cif")],
        ["2", "mp-0", "1", "1", "X", "[]", "nothing"],
    ]
    raw, report = read(write_csv(tmp_path / "mp.csv", rows))
    assert raw.ids.to_pylist() == ["mp-22862", "mp-22865"]
    assert raw.z.tolist() == [11, 17, 55, 17]
    assert list(raw.labels) == ["formation_energy_per_atom", "band_gap"]
    np.testing.assert_array_equal(raw.labels["band_gap"], [5, np.nan])
    assert raw.units == {"formation_energy_per_atom": "eV/atom"}
    assert [item.id for item in report.left_out] == ["mp-0"]
    assert report.notes == [
        "column 'pretty_formula' is not numeric and was not read",
        "column 'elements' is not numeric and was not read",
    ]


def test_csv_with_structure_dictionaries_compressed_and_without_identifiers(tmp_path):
    rows = [["Structure", "gap"], [json.dumps(CSCL.as_dict()), "1"], ['{"sites": []}', "2"], ["{", "3"], ["", "4"]]
    path = write_csv(tmp_path / "t.csv", rows)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    raw, report = read(tmp_path / "t.csv.gz")
    assert raw.ids.to_pylist() == ["0"]
    assert {item.id: item.reason for item in report.left_out} == {
        "1": "no pymatgen structure dictionary",
        "2": "unreadable structure",
        "3": "unreadable CIF",
    }


def test_another_column_of_identifiers(tmp_path):
    path = write_csv(tmp_path / "t.csv", [["name", "id", "cif"], ["a", "1", CSCL.to(fmt="cif")]])
    assert read(path)[0].ids.to_pylist() == ["1"]
    assert read(path, id_column="name")[0].ids.to_pylist() == ["a"]
    with pytest.raises(ValueError, match=r"t\.csv has no column 'nope'; its columns are 'name', 'id', 'cif'"):
        read(path, id_column="nope")


def test_rows_of_a_csv_that_are_damaged(tmp_path):
    cif = CSCL.to(fmt="cif")
    path = write_csv(
        tmp_path / "t.csv",
        [["id", "cif", "gap"], ["a", cif, "1"], ["b", cif], ["c", cif, "1", "2"], ["é", cif, "2"], ["d", cif, "3"]],
    )
    path.write_bytes(path.read_bytes().replace("é".encode(), "é".encode("latin-1")) + b'e,"' + b"x" * 2**23 + b"yz")
    raw, report = read(path)
    assert raw.ids.to_pylist() == ["a", "d"]
    assert report.counts() == {
        "row does not fit the columns": 2,
        "not UTF-8 text": 1,
        "table damaged from here on": 1,
    }
    assert csv.field_size_limit() < 2**23
    json.dumps([item.id for item in report.left_out]).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no readable CSV file: it is empty"),
        (b"id,gap\na,1\n", "has no column structure or cif; its columns are 'id', 'gap'"),
        (b"id,cif,gap,gap (eV)\n", "has columns of the same name"),
        (b"\x1f\x8bbroken", "no readable CSV file"),
    ],
)
def test_what_is_no_table_of_crystals(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"t\.csv .*{message}"):
        read(tmp_path / "t.csv")


@pytest.mark.parametrize("form", ["cif", "json", "nested", "binary"])
def test_parquet_with_a_column_of_structures(tmp_path, form):
    content = {
        "cif": [SALT.to(fmt="cif"), CSCL.to(fmt="cif"), "nothing", None],
        "json": [json.dumps(SALT.as_dict()), json.dumps(CSCL.as_dict()), "{", None],
        "nested": [SALT.as_dict(), CSCL.as_dict(), {"sites": None}, None],
        "binary": [SALT.to(fmt="cif").encode(), CSCL.to(fmt="cif").encode(), b"\xff", None],
    }[form]
    if form == "nested":
        for structure in content[:2]:
            structure["properties"] = None
            for site in structure["sites"]:
                site["properties"] = None
    gap = pa.field("gap", pa.float64(), metadata={"unit": "eV"})
    columns = [
        pa.array(["a", "b", "c", None]),
        pa.array(content),
        pa.array([1.0, None, 2.0, 3.0]),
        pa.array(list("wxyz")),
    ]
    names = [pa.field("id", pa.string()), pa.field("structure", columns[1].type), gap, pa.field("kind", pa.string())]
    pq.write_table(pa.table(columns, schema=pa.schema(names)), tmp_path / "t.parquet")
    raw, report = read(tmp_path / "t.parquet")
    assert raw.ids.to_pylist() == ["a", "b"]
    assert raw.z.tolist() == [11, 17, 55, 17]
    np.testing.assert_array_equal(raw.labels["gap"], [1, np.nan])
    assert raw.units == {"gap": "eV"}
    assert [item.id for item in report.left_out] == ["c", "3"]
    assert len(load_dataset(tmp_path / "t.parquet")) == 2
    assert len(load_dataset(tmp_path)) == 2


def test_a_column_of_something_else(tmp_path):
    pq.write_table(pa.table({"structure": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: column structure is int64, expected CIFs"):
        read(tmp_path / "t.parquet")
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet has no column lattice_vectors"):
        read(tmp_path / "t.parquet")

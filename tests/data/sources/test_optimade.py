import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.reading import open_sources, read_crystals

CUBIC = (4.1 * np.eye(3)).tolist()
ROW = {
    "immutable_id": "agm1",
    "lattice_vectors": CUBIC,
    "species_at_sites": ["Cs", "Cl"],
    "cartesian_site_positions": [[0.0] * 3, [2.05] * 3],
    "elements": ["Cl", "Cs"],
    "elements_ratios": [0.5, 0.5],
    "nelements": 2,
    "nsites": 2,
    "chemical_formula_reduced": "ClCs",
    "chemical_formula_anonymous": "AB",
    "dimension_types": [1, 1, 1],
    "nperiodic_dimensions": 3,
    "structure_features": [],
    "last_modified": "2024-01-01",
    "energy": -6.5,
    "magnetic_moments": [0.0, 0.0],
    "forces": [[0.0] * 3] * 2,
    "total_magnetization": 0.0,
    "dos_ef": None,
    "functional": "pbe",
    "cross_compatibility": True,
    "stress_tensor": CUBIC,
}


def read(path, **options):
    return read_crystals(open_sources([path], **options), ImportOptions(50))


def write(path, rows):
    # A numeric column without any number keeps its type.
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.set_column(table.column_names.index("dos_ef"), "dos_ef", table["dos_ef"].cast("double")), path)
    return path


def test_columns_as_published(tmp_path):
    doubled = ROW | {
        "immutable_id": "agm2",
        "lattice_vectors": np.diag([8.2, 4.1, 4.1]).tolist(),
        "species_at_sites": ["Cs", "Cl"] * 2,
        "cartesian_site_positions": [[0.0] * 3, [2.05] * 3, [4.1, 0, 0], [6.15, 2.05, 2.05]],
        "energy": None,
    }
    raw, report = read(write(tmp_path / "t.parquet", [ROW, doubled]))
    assert raw.ids.to_pylist() == ["agm1", "agm2"]
    assert raw.species_counts.tolist() == [2, 2]
    assert report.num_reduced == 1
    labels = ["nelements", "nsites", "nperiodic_dimensions", "energy", "total_magnetization", "dos_ef"]
    assert list(raw.labels) == [*labels, "cross_compatibility"]
    np.testing.assert_array_equal(raw.labels["energy"], [-6.5, np.nan])


def test_every_row_that_cannot_be_used_has_its_reason(tmp_path):
    faults = {
        "sites nearer than 0.5 Å": {"cartesian_site_positions": [[0.0] * 3, [0.0, 0.0, 4.0]]},
        "partial occupancy": {"structure_features": ["disorder"]},
        "not periodic in three directions": {"nperiodic_dimensions": 2},
        "unknown or unsupported element": {"species_at_sites": ["Cs", "Cl_vacancy"]},
        "number of species_at_sites differs from number of cartesian_site_positions": {"species_at_sites": ["Cs"]},
        "lattice_vectors missing": {"lattice_vectors": None},
        "a position is not finite": {"cartesian_site_positions": [[0.0] * 3, [float("nan")] * 3]},
        "identifier already taken": {"immutable_id": "agm1"},
    }
    rows = [ROW, *(ROW | {"immutable_id": f"bad{k}"} | change for k, change in enumerate(faults.values()))]
    raw, report = read(write(tmp_path / "t.parquet", [*rows, ROW | {"immutable_id": None}]))
    assert raw.ids.to_pylist() == ["agm1", "9"]
    assert report.counts() == dict.fromkeys(faults, 1)
    assert {item.id: item.detail for item in report.left_out if item.detail}["bad3"] == "Cl_vacancy"
    assert raw.pos.tolist() == [[0] * 3, [2.05] * 3] * 2


def test_batches_and_shards_go_on_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("pyg_dim.data.sources.optimade._BATCH", 3)
    for name, start in (("b", 5), ("a", 0)):
        write(tmp_path / f"{name}.parquet", [ROW | {"immutable_id": f"agm{start + k}"} for k in range(5)])
    raw, _ = read(tmp_path)
    assert raw.ids.to_pylist() == [f"agm{k}" for k in range(10)]


def test_another_column_of_identifiers_and_none(tmp_path):
    path = write(tmp_path / "t.parquet", [ROW])
    assert read(path, id_column="last_modified")[0].ids.to_pylist() == ["2024-01-01"]
    with pytest.raises(ValueError, match=r"t\.parquet has no column 'name'"):
        read(path, id_column="name")
    bare = [{name: value for name, value in ROW.items() if name != "immutable_id"}]
    assert read(write(path, bare))[0].ids.to_pylist() == ["0"]

import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pyg_dim.data import CrystalDataset

CELL = (4.0 * np.eye(3)).tolist()
ROW = {
    "immutable_id": "a",
    "lattice_vectors": CELL,
    "species_at_sites": ["Na", "Cl"],
    "cartesian_site_positions": [[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]],
    "gap": 1.0,
}


def write(path, rows):
    """Variable-length lists at every level, as other programs write them."""
    vectors = pa.list_(pa.list_(pa.float64()))
    schema = pa.schema(
        {
            "immutable_id": pa.string(),
            "lattice_vectors": vectors,
            "species_at_sites": pa.list_(pa.string()),
            "cartesian_site_positions": vectors,
            "gap": pa.float64(),
        }
    )
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path, dataset, dtype):
    path = tmp_path / "crystals.parquet"
    dataset.to_parquet(path)
    assert [file.name for file in tmp_path.iterdir()] == ["crystals.parquet"]
    again = CrystalDataset.from_parquet(path, dtype=dtype)
    assert again.ids.to_pylist() == dataset.ids.to_pylist()
    for name in ("z", "ptr"):
        assert torch.equal(getattr(again, name), getattr(dataset, name))
    for name in ("pos", "cell"):
        assert torch.equal(getattr(again, name), getattr(dataset, name).to(dtype))
    assert list(again.labels) == ["energy", "gap"]
    for name, values in dataset.labels.items():
        torch.testing.assert_close(again.labels[name], values, rtol=0, atol=0, equal_nan=True)
    # Missing labels are nulls in the file, not NaN.
    assert pq.read_table(path)["gap"].null_count == 4


def test_rows_that_cannot_be_used_are_reported_and_the_others_read(tmp_path):
    faults = {
        "lattice_vectors missing": {"lattice_vectors": None},
        "species_at_sites missing": {"species_at_sites": None},
        "species_at_sites holds a null": {"species_at_sites": ["Na", None]},
        "cartesian_site_positions holds a null": {"cartesian_site_positions": [[0.0] * 3, None]},
        "cartesian_site_positions holds a vector without three components": {
            "cartesian_site_positions": [[0.0] * 3, [1.0]]
        },
        "lattice_vectors does not hold three vectors": {"lattice_vectors": CELL[:2]},
        "a position is not finite": {"cartesian_site_positions": [[0.0] * 3, [1.0, None, 1.0]]},
        "number of species differs from number of positions": {"species_at_sites": ["Na"]},
        "unknown or unsupported element": {"species_at_sites": ["Na", "NaCl_mix"]},
        "identifier already taken": {},
    }
    rows = [ROW]
    for k, change in enumerate(faults.values()):
        rows.append(ROW | {"immutable_id": f"bad{k}" if change else "a"} | change)
    rows.append(ROW | {"immutable_id": "z", "gap": None, "species_at_sites": ["K", "Br"]})
    dataset = CrystalDataset.from_parquet(write(tmp_path / "mixed.parquet", rows), dtype=torch.float64)
    assert dataset.report.counts() == dict.fromkeys(faults, 1)
    assert dataset.report.num_read == len(rows)
    assert dataset.ids.to_pylist() == ["a", "z"]
    assert dataset.z.tolist() == [11, 17, 19, 35]
    assert dataset.pos.tolist() == [[0, 0, 0], [2, 2, 2]] * 2
    assert dataset.target("gap")[0] == 1
    assert dataset.target("gap")[1].isnan()


def test_numeric_columns_are_labels_and_others_are_not(tmp_path):
    table = pa.table(
        {
            "lattice_vectors": [CELL, CELL],
            "species_at_sites": [["Na"], ["K"]],
            "cartesian_site_positions": [[[0.0] * 3]] * 2,
            "count": pa.array([1, 2], pa.int16()),
            "metal": [True, False],
            "name": ["sodium", "potassium"],
            "forces": [[1.0], [2.0]],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    dataset = CrystalDataset.from_parquet(tmp_path / "t.parquet")
    assert list(dataset.labels) == ["count", "metal"]
    assert dataset.target("metal").tolist() == [1, 0]
    assert dataset.ids.to_pylist() == ["0", "1"]


def test_limit_on_sites(tmp_path):
    path = write(
        tmp_path / "t.parquet",
        [ROW, ROW | {"immutable_id": "b", "species_at_sites": ["K"], "cartesian_site_positions": [[0.0] * 3]}],
    )
    dataset = CrystalDataset.from_parquet(path, max_sites=1)
    assert dataset.ids.to_pylist() == ["b"]
    assert [str(item) for item in dataset.report.left_out] == ["a (2)"]


def test_errors_name_the_file_and_the_column(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.parquet"):
        CrystalDataset.from_parquet(tmp_path / "nothing.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"text\.parquet is not a readable Parquet file"):
        CrystalDataset.from_parquet(tmp_path / "text.parquet")
    pq.write_table(pa.table({"lattice_vectors": [CELL], "x": [1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="has no column species_at_sites, cartesian_site_positions"):
        CrystalDataset.from_parquet(tmp_path / "t.parquet")
    wrong = {"lattice_vectors": [1.0], "species_at_sites": [["Na"]], "cartesian_site_positions": [[[0.0] * 3]]}
    pq.write_table(pa.table(wrong), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="column lattice_vectors is double, expected lists of numbers nested 2 deep"):
        CrystalDataset.from_parquet(tmp_path / "t.parquet")
    wrong |= {"lattice_vectors": [CELL], "cartesian_site_positions": [[["0", "0", "0"]]]}
    pq.write_table(pa.table(wrong), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"t\.parquet: column cartesian_site_positions is .*string.*lists of numbers"):
        CrystalDataset.from_parquet(tmp_path / "t.parquet")


def good_columns(n=1):
    return {
        "lattice_vectors": [CELL] * n,
        "species_at_sites": [["Na"]] * n,
        "cartesian_site_positions": [[[0.0] * 3]] * n,
    }


def test_a_column_that_is_there_twice_or_no_identifier_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table(good_columns())
    pq.write_table(table.append_column("x", pa.array([1])).append_column("x", pa.array([2])), path)
    with pytest.raises(ValueError, match=r"t\.parquet has more than one column x"):
        CrystalDataset.from_parquet(path)
    pq.write_table(table.append_column("immutable_id", pa.array([[1]])), path)
    with pytest.raises(ValueError, match=r"t\.parquet: column immutable_id cannot be taken as text"):
        CrystalDataset.from_parquet(path)
    pq.write_table(table.append_column("immutable_id", pa.array([b"\xff"])), path)
    with pytest.raises(ValueError, match=r"t\.parquet: column immutable_id cannot be taken as text"):
        CrystalDataset.from_parquet(path)


def test_whole_numbers_beyond_the_precision_of_labels_are_rounded(tmp_path):
    pq.write_table(pa.table(good_columns() | {"hash": [2**60 + 1]}), tmp_path / "t.parquet")
    assert CrystalDataset.from_parquet(tmp_path / "t.parquet").target("hash").tolist() == [2.0**60]


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "none"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, compression):
    """Bytes overwritten or cut off anywhere: the file is read, or refused with its name."""
    rng = np.random.default_rng(0)
    table = pa.table({"immutable_id": [str(k) for k in range(50)]} | good_columns(50) | {"gap": rng.normal(size=50)})
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, compression=compression)
    whole = path.read_bytes()
    refused = 0
    for trial in range(40):
        start = int(rng.integers(len(whole) - 16))
        path.write_bytes(whole[:start] if trial % 4 == 0 else whole[:start] + rng.bytes(16) + whole[start + 16 :])
        try:
            CrystalDataset.from_parquet(path)
        except ValueError as error:
            assert "t.parquet" in str(error)  # noqa: PT017 - whether it is refused depends on the place
            refused += "is not a readable Parquet file" in str(error)
    assert refused > 10


def test_a_corrupt_page_is_an_error_that_says_what_to_do(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(good_columns(200) | {"gap": np.zeros(200)}), path, compression="snappy")
    page = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    start = page.dictionary_page_offset or page.data_page_offset
    end = start + page.total_compressed_size
    data[end - 8 : end] = b"\xff" * 8
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"t\.parquet is not a readable Parquet file.*damaged.*write it anew"):
        CrystalDataset.from_parquet(path)


def test_a_folder_of_shards_is_one_data_set(tmp_path):
    with pytest.raises(ValueError, match="holds no Parquet file"):
        CrystalDataset.from_parquet(tmp_path)
    (tmp_path / "notes.txt").write_text("not a table")
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", [ROW | {"immutable_id": name}])
    assert CrystalDataset.from_parquet(tmp_path).ids.to_pylist() == ["a", "b"]

    other = pa.table(good_columns() | {"immutable_id": ["c"], "energy": pa.array([3], pa.int64())})
    pq.write_table(other, tmp_path / "c.parquet")
    dataset = CrystalDataset.from_parquet(tmp_path)
    assert dataset.ids.to_pylist() == ["a", "b", "c"]
    np.testing.assert_array_equal(dataset.target("gap"), [1, 1, np.nan])
    np.testing.assert_array_equal(dataset.target("energy"), [np.nan, np.nan, 3])

    (tmp_path / "d.parquet").write_text("no table")
    with pytest.raises(ValueError, match=r"d\.parquet is not a readable Parquet file"):
        CrystalDataset.from_parquet(tmp_path)


def test_real_data_open_fast(shared):
    path = shared("data/mp36k.parquet")
    start = time.perf_counter()
    dataset = CrystalDataset.from_parquet(path)
    seconds = time.perf_counter() - start
    assert len(dataset) == 31918
    assert list(dataset.labels) == ["formation_energy_per_atom", "band_gap"]
    assert not dataset.report.left_out
    assert int(dataset.num_sites.max()) <= 50
    # Measured: 0.4 s on one core.
    assert seconds < 5

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pyg_dim.data import CrystalDataset
from pyg_dim.data.embeddings import read_embeddings, write_embeddings


@pytest.fixture
def three() -> CrystalDataset:
    """Rock salt, rutile, and rutile's composition in another structure."""
    from ase.build import bulk
    from ase.spacegroup import crystal

    def rutile(a: float):
        return crystal(["Ti", "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=[a, a, 2.96, 90, 90, 90])

    salt = bulk("NaCl", "rocksalt", a=5.64)
    return CrystalDataset.from_structures([salt, rutile(4.59), rutile(4.8)], ids=["salt", "rutile", "wide"])


VECTORS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 7.0]], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_written_is_read(tmp_path, three, dtype):
    path = tmp_path / "teacher.parquet"
    write_embeddings(path, ["wide", "other", "salt"], VECTORS.to(dtype))
    table = read_embeddings(path)
    assert (table.by, table.names) == ("immutable_id", ["wide", "other", "salt"])
    assert table.vectors.equal(VECTORS.to(dtype))
    found = table.of(three)
    assert found.dtype == dtype
    assert found[[0, 2]].tolist() == [[5, 7], [1, 2]]
    assert found[1].isnan().all()
    assert list(tmp_path.iterdir()) == [path]


def test_formulas_are_joined_by_composition(tmp_path, three):
    """Whatever their order and multiple; several of one composition give their mean."""
    path = tmp_path / "teacher.parquet"
    write_embeddings(path, ["O4Ti2", "TiO2", "KBr"], VECTORS, by="formula")
    found = read_embeddings(path).of(three)
    assert found[0].isnan().all()
    assert found[1:].tolist() == [[2, 3], [2, 3]]


def test_amounts_need_not_be_whole(tmp_path, three, monkeypatch):
    """As long as they are the same in the digits that data sets write."""
    path = tmp_path / "teacher.parquet"
    write_embeddings(path, ["Fe0.62Ni0.1900Al.19", "(ZrO2)0.3333333333", "Fe0.62Ni0.19Al0.18"], VECTORS, by="formula")
    formulas = ["Al0.19Fe0.62Ni0.19", "Zr0.333333O0.666667", "Fe0.62Ni0.19Al0.181"]
    monkeypatch.setattr(three, "formula", lambda row: formulas[row])
    found = read_embeddings(path).of(three)
    assert found[:2].tolist() == [[1, 2], [3, 4]]
    assert found[2].isnan().all()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_columns_of_numbers_are_dimensions(tmp_path, three, ending):
    frame = pd.DataFrame({"material_id": ["salt", "wide"], "composition": ["NaCl", "TiO2"], "0": [1.5, 2], "1": [3, 4]})
    path = tmp_path / f"table.{ending}"
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    table = read_embeddings(path)
    # Identifiers go before formulas.
    assert table.by == "material_id"
    assert table.of(three)[[0, 2]].tolist() == [[1.5, 3], [2, 4]]
    frame = frame.drop(columns="material_id")
    frame.to_csv(path, index=False) if ending == "csv" else frame.to_parquet(path)
    assert read_embeddings(path).of(three).tolist() == [[1.5, 3], [2, 4], [2, 4]]


def test_identifiers_that_look_like_numbers_stay_text(tmp_path, three):
    path = tmp_path / "table.csv"
    path.write_text("id,a\n007,1.0\n08,2.0\n")
    assert read_embeddings(path).names == ["007", "08"]
    pq.write_table(pa.table({"id": [7, 8], "a": [1.0, 2.0]}), tmp_path / "table.parquet")
    assert read_embeddings(tmp_path / "table.parquet").names == ["7", "8"]


def test_labels_beside_a_column_of_vectors_are_left_alone(tmp_path):
    path = tmp_path / "table.parquet"
    columns = {"id": ["a", "b"], "note": ["x", "y"], "gap": [1.0, None], "embedding": [[1.0, 2.0], [3.0, 4.0]]}
    pq.write_table(pa.table(columns), path)
    assert read_embeddings(path).vectors.tolist() == [[1, 2], [3, 4]]


def test_crystals_that_do_not_match(tmp_path, three):
    path = tmp_path / "table.parquet"
    write_embeddings(path, ["mp-1", "mp-2", "mp-3"], VECTORS)
    with pytest.raises(ValueError, match=r"column 'immutable_id' holds 'mp-1' for instance, the data hold 'salt'; a t"):
        read_embeddings(path).of(three)
    write_embeddings(path, ["salt", "wide", "salt"], VECTORS)
    with pytest.raises(
        ValueError, match=r"table\.parquet has more than one embedding of 'salt' in column 'immutable_id"
    ):
        read_embeddings(path).of(three)
    for text in ("no formula", "Xx2", ""):
        write_embeddings(path, ["NaCl", text, "KBr"], VECTORS, by="formula")
        with pytest.raises(ValueError, match=rf"table\.parquet: '{text}' is no formula: "):
            read_embeddings(path).of(three)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["a"], "x": [1.0]}, r"no column of identifiers .*its columns are name, x"),
        ({"id": ["a"]}, "holds no embeddings"),
        ({"id": ["a", None], "x": [1.0, 2.0]}, "column 'id' lacks a name"),
        ({"id": pa.array([], pa.string()), "x": pa.array([], pa.float64())}, "column 'id' is empty"),
        ({"id": ["a", "b"], "x": [1.0, None]}, "the embedding of 'b' holds a number that is missing"),
        ({"id": ["a", "b"], "x": [float("inf"), 1.0]}, "the embedding of 'a' holds"),
        ({"id": ["a"], "x": ["1.0"]}, "column 'x' holds something else than numbers"),
        ({"id": ["a"], "embedding": [1.0]}, "column 'embedding' is double, expected lists of numbers"),
        ({"id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}, r"embedding of 'b' has 2 numbers; .* the first, 1,"),
        ({"id": ["a", "b"], "embedding": [[1.0], None]}, "embedding of 'b' has 0 numbers"),
        ({"id": ["a"], "embedding": pa.array([[]], pa.list_(pa.float64()))}, "embedding of 'a' has 0 numbers"),
        ({"id": ["a"], "embedding": [[1.0, None]]}, "the embedding of 'a' holds a number that is missing"),
    ],
)
def test_bad_tables(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=rf"bad\.parquet.*{message}"):
        read_embeddings(tmp_path / "bad.parquet")


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table of embeddings at .*absent\.csv"):
        read_embeddings(tmp_path / "absent.csv")
    (tmp_path / "bad.parquet").write_text("text")
    with pytest.raises(ValueError, match=r"bad\.parquet is not a readable Parquet"):
        read_embeddings(tmp_path / "bad.parquet")
    (tmp_path / "bad.csv").write_text("id,x\na,1,2\n")
    with pytest.raises(ValueError, match=r"bad\.csv is not a readable CSV"):
        read_embeddings(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("id,x\na,one\n")
    with pytest.raises(ValueError, match=r"bad\.csv: column 'x' holds something else than numbers"):
        read_embeddings(tmp_path / "bad.csv")
    with pytest.raises(ValueError, match=r"that end with \.parquet or \.csv"):
        read_embeddings(tmp_path / "table.npz")


def test_bad_things_to_write(tmp_path):
    for names, vectors in ((["a"], VECTORS), (["a"], torch.zeros(1, 0)), (["a", "b", "c"], VECTORS[:, 0])):
        with pytest.raises(ValueError, match=r"must be \[m, F\]"):
            write_embeddings(tmp_path / "t.parquet", names, vectors)
    with pytest.raises(ValueError, match="column 'name' holds no names"):
        write_embeddings(tmp_path / "t.parquet", ["a", "b", "c"], VECTORS, by="name")
    with pytest.raises(ValueError, match=r"ends with \.parquet"):
        write_embeddings(tmp_path / "t.csv", ["a", "b", "c"], VECTORS)
    assert np.array_equal(list(tmp_path.iterdir()), [])

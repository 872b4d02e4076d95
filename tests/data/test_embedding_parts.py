"""Folders of parts: which there are, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pyg_dim.data.embedding_files import ParquetEmbeddings
from pyg_dim.data.embedding_parts import Shard, made_with, parts_in, require_whole
from pyg_dim.data.embeddings import read_embeddings


def write(folder, shard, names, **about):
    values = {"model": "a", "weights": "1f", "shard": str(shard)} | about
    with ParquetEmbeddings(folder / shard.file, ["x", "y"], torch.float64, values) as file:
        for name in names:
            file.write(pa.array([name]), torch.full((1, 2), float(name)).double())


@pytest.mark.parametrize("length", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_shares_follow_each_other_and_are_of_equal_size(length, count):
    shares = [Shard(number, count).range(length) for number in range(1, count + 1)]
    assert [entry for share in shares for entry in share] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_shard_is_said_as_k_of_n():
    assert Shard.parse("2/16") == Shard(2, 16)
    assert str(Shard(2, 16)) == "2/16"
    assert Shard(2, 16).file == "part-00002-of-00016.parquet"
    for text in ("2", "0/4", "5/4", "1/0", "-1/4", "a/b", "1/4 ", ""):
        with pytest.raises(ValueError, match="no shard"):
            Shard.parse(text)


def test_parts_are_one_table_in_their_order(tmp_path):
    write(tmp_path, Shard(3, 3), ["4"])
    write(tmp_path, Shard(1, 3), ["1", "2", "3"])
    # Written where the encoder lay elsewhere.
    write(tmp_path, Shard(2, 3), [], model="/elsewhere/a")
    (tmp_path / "_part.report.json").write_text("{}")
    (tmp_path / ".part-00001-of-00003.tmp.parquet").write_text("a killed process")
    table = read_embeddings(tmp_path)
    assert table.names == ["1", "2", "3", "4"]
    assert table.by == "immutable_id"
    assert table.vectors.tolist() == [[1, 1], [2, 2], [3, 3], [4, 4]]
    assert pq.read_table(tmp_path)["immutable_id"].to_pylist() == table.names
    assert made_with(parts_in(tmp_path)[1])["shard"] == "2/3"


def test_folders_that_are_no_whole_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no embeddings"):
        read_embeddings(tmp_path)
    for number in (1, 4):
        write(tmp_path, Shard(number, 5), ["1"])
    with pytest.raises(ValueError, match=r"lacks 3 of its shards \(2/5, 3/5, 5/5\): run pyg-dim embed for them"):
        require_whole(tmp_path)
    write(tmp_path, Shard(2, 5), ["1"], weights="2e")
    with pytest.raises(
        ValueError, match=r"part-00002-of-00005\.parquet and .*part-00001.* do not belong.*: weights diff"
    ):
        require_whole(tmp_path)
    write(tmp_path, Shard(2, 2), ["1"])
    (tmp_path / Shard(2, 5).file).unlink()
    with pytest.raises(ValueError, match="holds shards of 2 and of 5"):
        require_whole(tmp_path)
    pq.write_table(pa.table({"a": [1]}), tmp_path / Shard(3, 5).file)
    with pytest.raises(ValueError, match=r"is no shard"):
        require_whole(tmp_path)
    (tmp_path / Shard(3, 5).file).write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"part-00003-of-00005\.parquet is not a readable Parquet file"):
        require_whole(tmp_path)

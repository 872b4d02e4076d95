import itertools
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pyg_dim.data import CrystalDataset, CrystalLoader, DenseSupercell, StreamingLoader
from pyg_dim.data.raw import ALREADY_TAKEN


@pytest.fixture
def crystals(make_dataset, random_crystal):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 13, 60)
    labels = {"energy": rng.normal(size=60), "gap": np.where(np.arange(60) % 3, 1.0, np.nan)}
    return make_dataset([random_crystal(rng, int(n)) for n in sizes], labels)


@pytest.fixture
def path(crystals, tmp_path):
    """Two files of 40 and 20 crystals in row groups of nine."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for name, rows in (("a", torch.arange(40)), ("b", torch.arange(40, 60))):
        crystals.subset(rows).to_parquet(tmp_path / "one.parquet")
        pq.write_table(pq.read_table(tmp_path / "one.parquet"), folder / f"{name}.parquet", row_group_size=9)
    return folder


def stream(path, **options):
    return StreamingLoader(path, DenseSupercell(), **({"batch_sites": 40, "window": 2} | options))


def rows_of(loader):
    return [batch.row.tolist() for batch in loader]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("window", [1, 2, 100])
def test_batches_hold_what_they_hold_in_memory(path, window, shuffle):
    whole = CrystalDataset.from_parquet(path)
    loader = stream(path, targets=["gap", "energy"], window=window, shuffle=shuffle)
    seen = []
    for batch in loader:
        expected = DenseSupercell()(whole.gather(batch.row, ["gap", "energy"]))
        assert batch.keys() == expected.keys()
        for key, value in expected.to_dict().items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(batch[key], value, rtol=0, atol=0, equal_nan=True)
            else:
                assert batch[key] == value
        seen += batch.row.tolist()
        assert batch.num_nodes <= 40
    assert [loader.crystals(step) for step in range(len(loader))] == [[len(rows)] for rows in rows_of(loader)]
    assert sorted(seen) == list(range(60))
    assert (seen == list(range(60))) == (not shuffle)


@pytest.mark.parametrize("window", [1, 2, 100])
@pytest.mark.parametrize("batch_sites", [1, 40, 200])
def test_in_order_the_batches_are_those_of_the_loader_in_memory(path, window, batch_sites):
    whole = CrystalLoader(CrystalDataset.from_parquet(path), DenseSupercell(), batch_sites=batch_sites, shuffle=False)
    loader = stream(path, window=window, batch_sites=batch_sites, shuffle=False)
    assert rows_of(loader) == rows_of(whole)
    # A batch of 200 sites lies in up to five row groups.
    assert max(len(planned.window) for planned in loader._plan) <= max(
        window, 1 if batch_sites == 1 else 2, batch_sites // 40
    )
    third = [batch.row.tolist() for batch in itertools.islice(loader.batches(3), 2)]
    assert third == rows_of(whole)[3:5]


def test_identifiers_are_those_in_memory_and_each_is_there_once(path, tmp_path):
    for number, name in enumerate(("a", "b")):
        table = pq.read_table(path / f"{name}.parquet")
        # The same ones in both files, and in some row groups of one.
        ids = pa.array([f"c{(row + 5 * number) % 31}" for row in range(table.num_rows)])
        table = table.set_column(table.column_names.index("immutable_id"), "immutable_id", ids)
        pq.write_table(table, path / f"{name}.parquet", row_group_size=9)
    whole = CrystalDataset.from_parquet(path)
    for shuffle in (False, True):
        loader = stream(path, shuffle=shuffle)
        assert loader.ids.equals(whole.ids)
        assert len(whole) == 31
        assert {item.reason for item in loader.report.left_out} == {ALREADY_TAKEN}
        assert sorted(item.id for item in loader.report.left_out) == sorted(item.id for item in whole.report.left_out)
        for batch in loader:
            assert batch.pos.equal(whole.gather(batch.row).pos)


def test_only_a_window_is_in_memory(path):
    held = []

    def graph(batch):
        held.append(len(loader._in_memory[1]))
        return batch

    loader = StreamingLoader(path, graph, batch_sites=40, window=2)
    assert len(list(loader)) == len(held)
    # Two of the row groups of nine, and of those of four and two crystals that end the files.
    assert max(held) == 18
    assert min(held) < 18


def test_order_follows_from_seed_and_epoch_and_mixes_row_groups(path):
    def order(seed, epoch):
        loader = stream(path, seed=seed)
        loader.set_epoch(epoch)
        return rows_of(loader)

    assert order(1, 2) == order(1, 2)
    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert any(len({row // 9 for row in batch}) > 1 for batch in orders[0])
    # Which row groups are together changes too: the first batch is of those of the first window.
    assert len({frozenset(row // 9 for row in rows[0]) for rows in orders}) > 1


def test_it_goes_on_where_it_was_left(path):
    loader = stream(path, seed=3)
    loader.set_epoch(2)
    whole = rows_of(loader)
    loader.set_epoch(2)
    first = [batch.row.tolist() for batch in itertools.islice(loader, 4)]
    rest = stream(path, seed=3)
    rest.load_state_dict(loader.state_dict())
    assert first + rows_of(rest) == whole
    for name, theirs, mine in (("window", 2, 3), ("batch_sites", 40, 30)):
        with pytest.raises(ValueError, match=f"a loader with {name} {theirs}; this one has {name} {mine}"):
            stream(path, seed=3, **{name: mine}).load_state_dict(loader.state_dict())


def test_what_cannot_be_used_is_left_out_as_in_memory(path, caplog):
    with caplog.at_level(logging.INFO):
        loader = stream(path, max_sites=8)
    whole = CrystalDataset.from_parquet(path, max_sites=8)
    assert loader.report.left_out == whole.report.left_out
    assert loader.report.num_read == 60
    assert loader.num_crystals == len(whole) < 60
    for batch in loader:
        assert batch.z.equal(whole.gather(batch.row).z)
    assert caplog.text.count("crystals kept") == 2


def test_files_that_change_are_noticed(path):
    loader = stream(path)
    table = pq.read_table(path / "a.parquet")
    pq.write_table(table.take(list(range(40))[::-1]), path / "a.parquet", row_group_size=9)
    with pytest.raises(ValueError, match=r"a\.parquet was changed while it was read"):
        list(loader)


def test_bad_arguments(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        stream(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no Parquet file"):
        stream(tmp_path / "empty")
    with pytest.raises(ValueError, match="no target column 'nope'; its labels are 'energy', 'gap'"):
        stream(path, targets=["nope"])
    for name in ("batch_sites", "window", "max_sites"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            stream(path, **{name: 0})
    (path / "c.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"c\.parquet is not a readable Parquet file"):
        stream(path)

from __future__ import annotations

import pytest

from pyg_dim.data import CrystalLoader, DenseSupercell, load_dataset
from pyg_dim.training.loaders import EpochBatches


@pytest.fixture
def loader(parquet):
    return CrystalLoader(load_dataset(parquet), DenseSupercell(8), batch_sites=24, seed=3)


def rows(batches):
    return [batch.row.tolist() for batch in batches]


def test_it_yields_the_plan_of_its_epoch(loader):
    loader.set_epoch(4)
    expected = rows(loader)
    loader.set_epoch(0)
    batches = EpochBatches(loader, 4)
    assert len(batches) == len(expected)
    assert rows(batches) == expected
    assert rows(EpochBatches(loader, 5)) != expected


def test_the_rest_of_an_epoch_follows_the_saved_position(loader):
    whole = rows(EpochBatches(loader, 1))
    begun = EpochBatches(loader, 1)
    iterator = iter(begun)
    first = [next(iterator).row.tolist() for _ in range(2)]
    iterator.close()
    rest = EpochBatches(loader, 1)
    rest.load_state_dict(begun.state_dict())
    assert rest.state_dict() == {"epoch": 1, "position": 2}
    assert first + rows(rest) == whole
    # Only the first pass over a resumed epoch is a partial one.
    assert rows(rest) == whole


def test_a_finished_or_another_epoch_begins_at_its_start(loader):
    done = EpochBatches(loader, 1)
    whole = rows(done)
    for epoch, state in [(1, done.state_dict()), (2, {"epoch": 1, "position": 2})]:
        batches = EpochBatches(loader, epoch)
        batches.load_state_dict(state)
        assert len(rows(batches)) == len(batches)
    assert len(whole) == done.state_dict()["position"]

from __future__ import annotations

import pytest
import torch

from pyg_dim.data import load_dataset, save_index_sets, split
from pyg_dim.training.setup import prepare_data


def ids(data, rows):
    return set(data.dataset.ids.take(rows.tolist()).to_pylist())


def test_the_default_split_keeps_formulas_together(options, parquet):
    data = prepare_data(options(seed=3))
    train, val = split(load_dataset(parquet), 0.2, 3)
    assert data.train.equal(train)
    assert data.val.equal(val)


@pytest.mark.parametrize("rule", ["chemical_system", "random"])
def test_other_rules(options, parquet, rule):
    data = prepare_data(options(seed=3, split=rule))
    assert data.val.equal(split(load_dataset(parquet), 0.2, 3, rule)[1])


def test_parts_from_a_file_hold_for_what_is_kept(options, parquet, tmp_path):
    whole = load_dataset(parquet)
    path = tmp_path / "parts.json"
    save_index_sets(path, whole, {"train": torch.arange(0, 40), "val": torch.arange(40, 55)})
    data = prepare_data(options(split=str(path)))
    assert (data.train.tolist(), data.val.tolist()) == (list(range(40)), list(range(40, 55)))
    # "rare" is known for the first twenty crystals alone; of those, twelve are drawn.
    kept = prepare_data(options(split=str(path), objective="supervised", target="rare", limit=12))
    assert len(kept.dataset) == 12
    assert ids(kept, kept.train) == set(kept.dataset.ids.to_pylist()) <= {f"c{row}" for row in range(20)}
    assert not kept.val.numel()


def test_splits_that_do_not_fit(options, parquet, tmp_path):
    with pytest.raises(ValueError, match="unknown split 'size'"):
        prepare_data(options(split="size"))
    with pytest.raises(ValueError, match="need the row of each crystal in a whole task"):
        prepare_data(options(split="matbench:0"))
    whole = load_dataset(parquet)
    path = tmp_path / "parts.json"
    save_index_sets(path, whole, {"train": torch.arange(40, 60), "val": torch.arange(20)})
    with pytest.raises(ValueError, match="leaves no crystal to train on"):
        prepare_data(options(split=str(path), objective="supervised", target="rare"))

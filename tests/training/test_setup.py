from __future__ import annotations

import pytest
import torch

from pyg_dim.data import load_dataset, save_index_sets, split
from pyg_dim.data.embeddings import write_embeddings
from pyg_dim.data.fingerprints import fingerprint_table
from pyg_dim.objectives import BarlowTwins, Combined, DeepInfoMax, Distillation, Fingerprint, Supervised
from pyg_dim.training.options import OBJECTIVES
from pyg_dim.training.setup import prepare_data, prepare_encoder, prepare_objective


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


def built(options):
    data, (encoder, _) = prepare_data(options), prepare_encoder(options)
    return prepare_objective(options, encoder, data), data


def test_one_objective_is_built_as_it_is(options, tmp_path):
    kinds = {
        "deep_infomax": DeepInfoMax, "fingerprint": Fingerprint, "barlow_twins": BarlowTwins,
        "distillation": Distillation, "supervised": Supervised,
    }  # fmt: skip
    assert set(kinds) == set(OBJECTIVES)
    write_embeddings(tmp_path / "table.parquet", ["c0", "c7", "c9", "c30"], torch.rand(4, 3))
    for name, kind in kinds.items():
        teacher = str(tmp_path / "table.parquet") if name == "distillation" else None
        assert type(built(options(objective=name, target="energy", teacher=teacher, split="random"))[0]) is kind


def test_several_are_combined_in_their_order_with_their_weights(options):
    chosen = options(
        objective="barlow_twins+deep_infomax", objective_weights="0.5,2", barlow_channels=12, mask=0.3, alpha=0.7,
        displacement=0.2,
    )  # fmt: skip
    objective, data = built(chosen)
    assert isinstance(objective, Combined)
    assert objective.weights == {"barlow_twins": 0.5, "deep_infomax": 2.0}
    twins, infomax = objective.parts.values()
    assert (twins.channels, twins.mask, twins.displacement, infomax.alpha) == (12, 0.3, 0.2, 0.7)
    assert data.dataset.fingerprint is None


def test_fingerprints_are_those_of_the_crystals_kept_and_scaled_by_those_to_train_on(options):
    objective, data = built(options(objective="fingerprint", fingerprints="radial,magpie", limit=30, precision="64"))
    table = fingerprint_table(data.dataset, ["radial", "magpie"])
    assert table.shape[0] == 30
    assert data.dataset.fingerprint.equal(table)
    torch.testing.assert_close(objective.mean, table[data.train].mean(dim=0).float())


def test_other_objectives_keep_crystals_without_a_label(options):
    assert len(prepare_data(options(objective="supervised", target="rare")).dataset) == 20
    both = options(objective="deep_infomax+supervised", target="rare")
    assert len(prepare_data(both).dataset) == 60
    with pytest.raises(ValueError, match="no crystal with a label in empty"):
        prepare_data(options(objective="fingerprint+supervised", target="empty"))

import logging
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch

from pyg_dim.data import draw_labels, mask_labels, matbench_folds, save_index_sets, split
from pyg_dim.data.splits import given_parts


@pytest.fixture
def polymorphs(make_dataset, random_crystal):
    rng = np.random.default_rng(0)
    return make_dataset([random_crystal(rng, int(n), elements=(3, 8, 11, 17)) for n in rng.integers(1, 6, 400)])


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5, 0.9])
def test_parts_are_complete_and_share_no_formula(polymorphs, fraction):
    train, val = split(polymorphs, fraction, seed=1)
    assert torch.cat([train, val]).sort().values.tolist() == list(range(400))
    formulas = [Counter(polymorphs.formula(row) for row in part.tolist()) for part in (train, val)]
    assert formulas[0].keys().isdisjoint(formulas[1])
    largest = (formulas[0] + formulas[1]).most_common(1)[0][1]
    assert abs(len(val) - fraction * 400) <= largest


def test_the_seed_decides(polymorphs):
    assert torch.equal(split(polymorphs, seed=1)[1], split(polymorphs, seed=1)[1])
    assert not torch.equal(split(polymorphs, seed=1)[1], split(polymorphs, seed=2)[1])


def test_no_validation_on_request(polymorphs):
    train, val = split(polymorphs, 0.0)
    assert len(train) == 400
    assert len(val) == 0


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_neither_part_is_empty_when_there_are_two_formulas(make_dataset, random_crystal, fraction):
    rng = np.random.default_rng(0)
    dataset = make_dataset([random_crystal(rng, 1, elements=(z,)) for z in (3, 3, 3, 11)])
    train, val = split(dataset, fraction)
    assert len(train) > 0
    assert len(val) > 0


def test_one_formula_is_split_by_crystal_with_a_warning(make_dataset, random_crystal, caplog):
    rng = np.random.default_rng(0)
    dataset = make_dataset([random_crystal(rng, 2, elements=(14,)) for _ in range(10)])
    with caplog.at_level(logging.WARNING, logger="pyg_dim.data.splits"):
        train, val = split(dataset, 0.2)
    assert (len(train), len(val)) == (8, 2)
    assert "all 10 crystals have the formula Si" in caplog.text


def test_a_single_crystal_goes_to_training(make_dataset, random_crystal):
    train, val = split(make_dataset([random_crystal(np.random.default_rng(0), 3)]))
    assert train.tolist() == [0]
    assert val.tolist() == []


def test_bad_arguments(polymorphs):
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="val_fraction"):
            split(polymorphs, fraction)
    with pytest.raises(ValueError, match="empty"):
        split(polymorphs.subset(torch.tensor([], dtype=torch.long)))


@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_parts_share_no_chemical_system(polymorphs, fraction):
    train, val = split(polymorphs, fraction, seed=1, by="chemical_system")
    assert torch.cat([train, val]).sort().values.tolist() == list(range(400))
    systems = [{frozenset(polymorphs[row].z.tolist()) for row in part.tolist()} for part in (train, val)]
    assert systems[0].isdisjoint(systems[1])
    assert systems[0]
    assert systems[1]
    # Some formulas of one system differ, or this would show nothing.
    assert len(systems[0] | systems[1]) < len({polymorphs.formula(row) for row in range(400)})


def test_a_random_split_has_the_share_asked_for(polymorphs):
    train, val = split(polymorphs, 0.25, seed=1, by="random")
    assert (len(train), len(val)) == (300, 100)
    assert torch.cat([train, val]).sort().values.tolist() == list(range(400))


def test_the_default_split_stays_the_same(polymorphs):
    """Runs are compared on the same rows from version to version."""
    assert split(polymorphs, 0.02, seed=0)[1].tolist() == [53, 61, 95, 101, 108, 171, 212, 378]


def numbered(make_dataset, n, ids=None):
    dataset = make_dataset([([11], np.zeros((1, 3)), 4 * np.eye(3))] * n)
    dataset.ids = pa.array(map(str, range(n)) if ids is None else ids)
    return dataset


def test_matbench_folds(make_dataset):
    from sklearn.model_selection import KFold

    dataset = numbered(make_dataset, 312)
    folds = matbench_folds(dataset)
    for fold, (_, test) in enumerate(KFold(5, shuffle=True, random_state=18012019).split(np.zeros(312))):
        assert (folds == fold).nonzero()[:, 0].tolist() == test.tolist()
        train, val = given_parts(dataset, f"matbench:{fold}")
        assert val.tolist() == test.tolist()
        assert sorted(train.tolist() + val.tolist()) == list(range(312))
    # By their numbers where some are left out, by place where names are no numbers.
    rows = torch.tensor([300, 4, 77])
    assert matbench_folds(dataset.subset(rows)).equal(folds[rows])
    assert matbench_folds(numbered(make_dataset, 312, [f"mb-{k}" for k in range(312)])).equal(folds)
    few = numbered(make_dataset, 3, ["300", "4", "77"])
    assert matbench_folds(few, 312).equal(folds[rows])
    assert given_parts(few, "matbench:2:312")[1].tolist() == (folds[rows] == 2).nonzero()[:, 0].tolist()


def test_the_official_folds(shared, make_dataset):
    official = np.load(shared("fixtures/matbench_folds.npz"), allow_pickle=False)
    for name in ("jdft2d", "phonons", "dielectric"):
        dataset = numbered(make_dataset, len(official[name]))
        assert matbench_folds(dataset).tolist() == official[name].tolist()


def test_folds_of_classes_are_refused(make_dataset):
    few = numbered(make_dataset, 4, ["300", "4", "77", "106000"])
    nan = float("nan")
    gaps = few.with_labels({"gap pbe": torch.tensor([0, 1, 0.5, nan], dtype=torch.float64)})
    metals = few.with_labels({"gap pbe": torch.zeros(4, dtype=torch.float64)})
    classes = few.with_labels({"is_metal": torch.tensor([0, 1, nan, 1], dtype=torch.float64)})
    # matbench_mp_gap and matbench_mp_is_metal have the same number of rows.
    assert matbench_folds(gaps, 106113).equal(matbench_folds(metals, 106113))
    with pytest.raises(ValueError, match=r"the label 'is_metal' tells classes apart, .* are stratified"):
        given_parts(classes, "matbench:0:106113")
    # No task of this size has classes: a label of another source.
    assert matbench_folds(classes, 132752).equal(matbench_folds(gaps, 132752))


def test_folds_of_unknown_rows_are_refused(make_dataset):
    named = numbered(make_dataset, 312, [f"mb-{k}" for k in range(312)])
    for dataset in (
        numbered(make_dataset, 311),
        named.subset(torch.arange(300)),
        numbered(make_dataset, 312, [str(k + 5) for k in range(312)]),
    ):
        with pytest.raises(ValueError, match="need the row of each crystal in a whole task"):
            matbench_folds(dataset)
    for how in ("matbench:5", "matbench:", "matbench:x", "matbench:1:many"):
        with pytest.raises(ValueError, match="is no split: say matbench:K with a fold K from 0 to 4"):
            given_parts(named, how)


def test_parts_from_a_file(polymorphs, tmp_path):
    path = tmp_path / "parts.json"
    save_index_sets(path, polymorphs, {"train": torch.tensor([5, 1]), "val": torch.tensor([7])})
    train, val = given_parts(polymorphs, str(path))
    assert (train.tolist(), val.tolist()) == ([1, 5], [7])
    save_index_sets(path, polymorphs, {"train": torch.tensor([5, 1]), "val": torch.tensor([7, 5])})
    with pytest.raises(ValueError, match="'train' and 'val' share crystals"):
        given_parts(polymorphs, str(path))
    save_index_sets(path, polymorphs, {"train": torch.tensor([5])})
    with pytest.raises(ValueError, match="no set named 'val'; it has 'train'"):
        given_parts(polymorphs, str(path))
    with pytest.raises(
        ValueError, match="unknown split 'formulas'; known: formula, chemical_system, random, matbench:K"
    ):
        given_parts(polymorphs, "formulas")
    with pytest.raises(ValueError, match="by must be one of formula, chemical_system, random, not 'size'"):
        split(polymorphs, by="size")


def test_labels_are_drawn_and_masked(dataset):
    rows = draw_labels(dataset, "gap", 5, seed=1)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert dataset.target("gap")[rows].isfinite().all()
    assert rows.equal(draw_labels(dataset, "gap", 5, seed=1))
    assert len({tuple(draw_labels(dataset, "gap", 5, seed).tolist()) for seed in range(9)}) > 3
    among = torch.tensor([1, 2, 3, 4, 5])
    assert set(draw_labels(dataset, "gap", 3, among=among).tolist()) <= {1, 2, 4, 5}
    masked = mask_labels(dataset, "gap", rows)
    assert masked.target("gap").isfinite().nonzero()[:, 0].equal(rows)
    assert masked.target("energy").equal(dataset.target("energy"))
    assert dataset.target("gap").isfinite().sum() == 8
    for n in (0, 9):
        with pytest.raises(ValueError, match=f"{n} labels 'gap' asked for, 8 available"):
            draw_labels(dataset, "gap", n)

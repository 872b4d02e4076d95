import json

import pytest
import torch

from pyg_dim.data import load_index_sets, save_index_sets


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sets.json"


def test_sets_are_found_again(dataset, path):
    sets = {"train": torch.tensor([4, 0, 7]), "few": torch.tensor([7]), "none": torch.tensor([], dtype=torch.long)}
    save_index_sets(path, dataset, sets, notes={"seed": 3})
    found = load_index_sets(path, dataset)
    assert list(found) == list(sets)
    assert all(found[name].equal(rows) for name, rows in sets.items())
    contents = json.loads(path.read_text())
    assert contents["notes"] == {"seed": 3}
    assert contents["sets"]["train"] == ["c4", "c0", "c7"]
    assert [file.name for file in path.parent.iterdir()] == ["sets.json"]


def test_they_are_of_crystals_not_of_rows(dataset, path):
    save_index_sets(path, dataset, {"some": torch.tensor([4, 0, 7])})
    other = dataset.subset(torch.tensor([7, 4, 3, 0]))
    assert load_index_sets(path, other)["some"].tolist() == [1, 3, 0]


def test_crystals_that_are_not_there(dataset, path):
    save_index_sets(path, dataset, {"some": torch.arange(9)})
    with pytest.raises(
        ValueError, match=r"sets\.json: 5 of 9 crystals of the set 'some' are not in test \(c4, c5, c6, \.\.\.\)"
    ):
        load_index_sets(path, dataset.subset(torch.arange(4)))


@pytest.mark.parametrize(
    "contents",
    [
        "",
        "{",
        "[]",
        "3",
        '{"sets": {"a": []}}',
        '{"format": "pyg_dim index sets"}',
        '{"format": "pyg_dim index sets", "sets": {"a": [1]}}',
        '{"format": "pyg_dim index sets", "sets": ["a"]}',
    ],
)
def test_files_of_another_kind(dataset, path, contents):
    path.write_text(contents)
    with pytest.raises(ValueError, match=r"sets\.json is no file of index sets, or a damaged one"):
        load_index_sets(path, dataset)


def test_bad_sets(dataset, path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_index_sets(path, dataset)
    for row in (12, -1):
        with pytest.raises(ValueError, match="set 'a' has rows that a data set of 12 crystals does not have"):
            save_index_sets(path, dataset, {"a": torch.tensor([row])})
    save_index_sets(path, dataset, {"a": torch.tensor([1, 1])})
    with pytest.raises(ValueError, match="the set 'a' names a crystal more than once"):
        load_index_sets(path, dataset)

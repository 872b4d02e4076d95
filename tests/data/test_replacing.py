from __future__ import annotations

import pytest

from pyg_dim.data.replacing import replacing


def test_the_new_file_takes_the_place_of_the_old_one_at_once(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing(path) as file:
        file.write_text("new")
        assert path.read_text() == "old"
        # Not found by a search for files of this kind.
        assert [*tmp_path.glob("*.txt")] == [path]
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


def half(path):
    with replacing(str(path)) as file:
        file.write_text("half")
        raise RuntimeError


def test_what_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        half(path)
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]

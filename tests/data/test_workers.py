import os
import signal

import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.parts import Parts, make_part
from pyg_dim.data.raw import UnusableCrystalError
from pyg_dim.data.sources.base import Entry
from pyg_dim.data.workers import Workers

CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).as_dict()


class Killer(dict):
    """A structure that ends the process that looks at it."""

    def __getitem__(self, key):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_crystal_that_kills_its_process_is_left_out(tmp_path):
    parts, done = Parts(tmp_path), []
    with Workers(2, ImportOptions(50), done.append) as workers:
        for number in range(3):
            content = [Killer() if (number, k) == (1, 2) else CSCL for k in range(4)]
            entries = [Entry(f"c{number}{k}", "structure", item, {}) for k, item in enumerate(content)]
            workers.submit(entries, parts.path(number))
    assert sum(done) == 12
    ids = [name for number in range(3) for name in pq.read_table(parts.path(number))["immutable_id"].to_pylist()]
    assert ids == ["c00", "c01", "c02", "c03", "c10", "c11", "c13", "c20", "c21", "c22", "c23"]
    _, report = parts.read(1)
    assert [str(item) for item in report.left_out] == ["c12"]
    assert report.counts() == {"the reader crashed or ran out of memory": 1}


def test_an_error_ends_the_work(tmp_path):
    with pytest.raises(FileNotFoundError), Workers(2, ImportOptions(50), lambda _: None) as workers:  # noqa: PT012
        workers.submit([Entry("a", "structure", CSCL, {})], tmp_path / "nowhere" / "part.parquet")
        workers.submit([Entry("b", "structure", CSCL, {})], tmp_path / "part.parquet")


def test_a_stop_while_the_killer_is_looked_for_leaves_no_half_as_a_part(tmp_path, monkeypatch):
    def survives(self, entries, path):
        if len(entries) == 2 and entries[0].id == "c0":
            return make_part(entries, self._options, path) == 2
        if len(entries) == 2:
            assert len(list(tmp_path.glob("*.sha256"))) == 1
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Workers, "_survives", survives)
    parts = Parts(tmp_path)
    with pytest.raises(KeyboardInterrupt), Workers(2, ImportOptions(50), lambda _: None) as workers:
        workers._recover([([Entry(f"c{k}", "structure", CSCL, {}) for k in range(4)], parts.path(0))])
    assert not parts.is_done(0)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_only_halves_survive_is_joined_from_them_and_not_made_here(tmp_path, monkeypatch):
    labels = [{}, {"gap": 1.0}, {"gap": 2.0, "energy": 3.0}, {"gap": "wide"}]
    entries = [Entry(f"c{k}", "structure", CSCL, row) for k, row in enumerate(labels)]
    entries.append(Entry("bad", "fault", UnusableCrystalError("unreadable"), {}))

    def survives(self, entries, path):
        return len(entries) < 4 and make_part(entries, self._options, path) > 0

    monkeypatch.setattr(Workers, "_survives", survives)

    def make_here(*_):
        raise AssertionError("made in the first process")

    monkeypatch.setattr("pyg_dim.data.workers.make_part", make_here)
    parts, done = Parts(tmp_path), []
    with Workers(2, ImportOptions(50), done.append) as workers:
        workers._recover([(entries, parts.path(0))])
    assert done == [5]
    assert parts.is_done(0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["part-000000.parquet", "part-000000.sha256"]
    table, report = parts.read(0)
    assert table["immutable_id"].to_pylist() == ["c0", "c1", "c2", "c3"]
    assert table["gap"].to_pylist() == [None, 1, 2, None]
    assert table["energy"].to_pylist() == [None, None, 3, None]
    assert report.num_read == 5
    assert [item.id for item in report.left_out] == ["bad"]
    assert report.not_numbers["gap"].count == 1

import os
import signal

import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

from pyg_dim.data.collect import ImportOptions
from pyg_dim.data.parts import Parts
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

from __future__ import annotations

import logging
import sys
from itertools import count

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pymatgen.core import Lattice, Structure

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.magpie import magpie_features
from pyg_dim.evaluate import baselines
from pyg_dim.evaluate.baselines import DESCRIPTORS, descriptor_table, orbital_field_matrix, xray_pattern

NO_MATMINER = "needs matminer: pip install -e '.[baselines]'"
STRUCTURES = {
    "NaCl": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0, 0]]),
    "CaTiO3": Structure(
        Lattice.cubic(3.84),
        ["Ca", "Ti", "O", "O", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
    ),
    "triclinic": Structure(
        [[3.1, 0.3, 0.2], [-0.7, 3.6, 0.4], [0.5, -0.6, 4.3]],
        ["Li", "O", "Fe"],
        [[0.02, 0.11, 0.07], [0.41, 0.32, 0.35], [0.67, 0.73, 0.71]],
    ),
}
DENSE = list(STRUCTURES)
# Neighbours across a gap of 10 angstrom close the Voronoi cells: the tessellation has to be matminer's own.
SLAB = Structure(Lattice.tetragonal(3, 12), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 1 / 6]])
# No neighbour within 7 angstrom: the radius is doubled.
OPEN = Structure(Lattice.cubic(9.0), ["Cs"], [[0, 0, 0]])
# matminer's orbital field matrix ends at plutonium.
CURIUM = Structure(Lattice.cubic(3.2), ["Cm"], [[0, 0, 0]])


def dataset_of(structures: dict[str, Structure], dtype: torch.dtype = torch.float64) -> CrystalDataset:
    return CrystalDataset.from_structures(list(structures.values()), list(structures), dtype=dtype)


def rows_of(dataset: CrystalDataset) -> torch.Tensor:
    return torch.arange(len(dataset))


class Described:
    """In place of matminer: vectors that tell crystals apart, and fail or stop where they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, chunk: int = 2) -> None:
        self.calls: list[int] = []
        self.stop_at: int | None = None
        self.fail_for: int | None = None
        self._number = count()
        monkeypatch.setattr(baselines, "_describe", self)
        monkeypatch.setattr(baselines, "_require_matminer", lambda name: None)
        monkeypatch.setattr(baselines, "_CHUNK", chunk)

    def __call__(self, name: str, crystal: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray | str:
        z, _, cell = crystal
        if next(self._number) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(int(z[0]))
        if z[0] == self.fail_for:
            return "KeyError: 96"
        return np.full(baselines._WIDTH[name], z.sum() + np.linalg.det(cell) / 7)


@pytest.fixture
def described(monkeypatch):
    return Described(monkeypatch)


@pytest.fixture
def seven():
    """Seven crystals whose first atomic numbers are 3 to 9."""
    structures = {f"c{z}": Structure(Lattice.cubic(2 + z / 10), [z, 30], [[0, 0, 0], [0.5] * 3]) for z in range(3, 10)}
    return dataset_of(structures)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "xrd.parquet"


@pytest.mark.filterwarnings("ignore")
def test_orbital_fields_are_those_of_matminer(monkeypatch):
    matrix = pytest.importorskip("matminer.featurizers.structure", reason=NO_MATMINER).OrbitalFieldMatrix
    reference = matrix(period_tag=True)
    structures = {**STRUCTURES, "open": OPEN, "slab": SLAB}
    expected = [reference.featurize(structure) for structure in structures.values()]

    plain = []
    original = matrix.featurize
    monkeypatch.setattr(matrix, "featurize", lambda self, s: plain.append(s.formula) or original(self, s))
    dataset = dataset_of(structures)
    vectors, rows = orbital_field_matrix(dataset, rows_of(dataset))
    assert vectors.shape == (5, 1521)
    assert vectors.dtype == torch.float64
    assert rows.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(vectors.numpy(), expected, rtol=1e-10, atol=1e-12)
    assert plain == ["Na1 Cl1"], "only the slab is left to matminer's own, slow, tessellation"


@pytest.mark.filterwarnings("ignore")
def test_single_precision_is_enough_for_orbital_fields():
    pytest.importorskip("matminer", reason=NO_MATMINER)
    double, single = (
        orbital_field_matrix(dataset, rows_of(dataset))[0]
        for dataset in (dataset_of(STRUCTURES, dtype) for dtype in (torch.float64, torch.float32))
    )
    torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_xray_patterns_are_those_of_matminer_with_its_defaults():
    reference = pytest.importorskip("matminer.featurizers.structure", reason=NO_MATMINER).XRDPowderPattern()
    dataset = dataset_of(STRUCTURES)
    vectors, rows = xray_pattern(dataset, torch.tensor([2, 0]))
    assert rows.tolist() == [2, 0]
    assert vectors.shape == (2, 128)
    expected = [reference.featurize(STRUCTURES[DENSE[row]]) for row in (2, 0)]
    # The primitive cell of rock salt has the peaks of the cubic one, with other rounding of their heights.
    np.testing.assert_allclose(vectors.numpy(), expected, rtol=1e-6, atol=1e-9)
    assert vectors.sum(1).tolist() == pytest.approx([1, 1], abs=0.1), "a density over the degrees"


@pytest.mark.filterwarnings("ignore")
def test_a_crystal_that_fails_is_reported_and_left_out(tmp_path, caplog):
    pytest.importorskip("matminer", reason=NO_MATMINER)
    dataset = dataset_of({"NaCl": STRUCTURES["NaCl"], "too heavy": CURIUM, "CaTiO3": STRUCTURES["CaTiO3"]})
    for _ in range(2):  # computed, then from the file
        caplog.clear()
        vectors, rows = descriptor_table("ofm", dataset, rows_of(dataset), tmp_path / "ofm.parquet")
        assert rows.tolist() == [0, 2]
        assert vectors.shape == (2, 1521)
        assert vectors.isfinite().all()
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warnings == ["ofm: crystal too heavy is left out: KeyError: 96"]


@pytest.mark.filterwarnings("ignore")
def test_processes_give_the_same_numbers():
    pytest.importorskip("matminer", reason=NO_MATMINER)
    dataset = dataset_of(STRUCTURES)
    one, two = (xray_pattern(dataset, rows_of(dataset), workers) for workers in (1, 2))
    assert one[0].equal(two[0])
    assert one[1].equal(two[1])


def test_magpie_features_need_no_file(seven, path):
    rows = torch.tensor([4, 1])
    vectors, ok = descriptor_table("magpie", seven, rows, path)
    part = seven.subset(rows)
    assert vectors.equal(magpie_features(part.z, part.ptr))
    assert ok.tolist() == [4, 1]
    assert not path.exists()


def test_a_file_returns_what_was_computed(seven, path, described):
    rows = torch.tensor([5, 0, 3, 0])
    computed = descriptor_table("xrd", seven, rows, path)
    assert described.calls == [8, 3, 6], "a row that is asked for twice is computed once"
    read = descriptor_table("xrd", seven, rows, path)
    assert described.calls == [8, 3, 6]
    for one, other in zip(computed, read, strict=True):
        assert one.equal(other)
    volumes = [(2 + z / 10) ** 3 for z in (8, 3, 6, 3)]
    assert read[0][:, 0].tolist() == pytest.approx([z + 30 + v / 7 for z, v in zip((8, 3, 6, 3), volumes, strict=True)])
    table = pq.read_table(path)
    assert table["immutable_id"].to_pylist() == ["c8", "c3", "c6"]
    assert table.schema.field("descriptor").type == pa.list_(pa.float64(), 128)
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"


def test_other_rows_are_added_to_the_file(seven, path, described):
    first, _ = descriptor_table("xrd", seven, torch.tensor([1, 2]), path)
    second, _ = descriptor_table("xrd", seven, rows_of(seven), path)
    assert described.calls == [4, 5, 3, 6, 7, 8, 9]
    assert second[1:3].equal(first)
    # Crystals are known by their identifiers and geometry, wherever they stand.
    third, _ = descriptor_table("xrd", seven.subset(torch.tensor([6, 2])), torch.tensor([0, 1]), path)
    assert len(described.calls) == 7
    assert third.equal(second[[6, 2]])


@pytest.mark.parametrize("what", ["z", "pos", "cell"])
def test_another_crystal_under_the_same_identifier_is_not_taken_for_it(seven, path, described, what):
    rows = torch.tensor([0, 1])
    before, _ = descriptor_table("xrd", seven, rows, path)
    other = seven.subset(rows_of(seven))
    getattr(other, what).view(-1)[0] += 1
    after, _ = descriptor_table("xrd", other, rows, path)
    assert len(described.calls) == 3
    assert after[1].equal(before[1])
    # Both stay in the file.
    again, _ = descriptor_table("xrd", seven, rows, path)
    assert again.equal(before)
    assert pq.read_table(path)["immutable_id"].to_pylist() == ["c3", "c4", "c3"]


def test_a_run_that_is_stopped_loses_a_chunk_at_most(seven, path, described, caplog):
    described.stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        descriptor_table("xrd", seven, rows_of(seven), path)
    assert described.calls == [3, 4, 5, 6, 7]
    assert pq.read_table(path)["immutable_id"].to_pylist() == ["c3", "c4", "c5", "c6"]
    described.calls.clear()
    with caplog.at_level(logging.INFO, baselines.__name__):
        vectors, rows = descriptor_table("xrd", seven, rows_of(seven), path)
    assert described.calls == [7, 8, 9]
    assert [r.getMessage() for r in caplog.records] == [
        "xrd: 2 of 3 crystals are done",
        "xrd: 3 of 3 crystals are done",
    ]
    assert rows.tolist() == list(range(7))
    assert vectors.equal(descriptor_table("xrd", seven, rows_of(seven))[0])


def test_all_crystals_may_fail(seven, described):
    described.fail_for = 3
    vectors, rows = descriptor_table("ofm", seven, torch.tensor([0]))
    assert vectors.shape == (0, 1521)
    assert rows.numel() == 0


def test_without_matminer_the_message_says_what_to_install(seven, path, monkeypatch):
    for module in ("matminer", "matminer.featurizers", "matminer.featurizers.structure"):
        monkeypatch.setitem(sys.modules, module, None)
    for describe in (orbital_field_matrix, xray_pattern):
        with pytest.raises(ValueError, match=r'needs matminer.*pip install "pyg-dim\[baselines\]"') as caught:
            describe(seven, rows_of(seven))
        assert isinstance(caught.value.__cause__, ImportError)
    assert descriptor_table("magpie", seven, rows_of(seven))[0].shape == (7, 145)


def test_a_complete_file_needs_no_matminer(seven, path):
    with pytest.MonkeyPatch.context() as patch:
        Described(patch)
        expected, _ = descriptor_table("xrd", seven, rows_of(seven), path)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("matminer", "matminer.featurizers", "matminer.featurizers.structure"):
            patch.setitem(sys.modules, module, None)
        assert descriptor_table("xrd", seven, rows_of(seven), path)[0].equal(expected)


def test_files_of_something_else_are_refused_and_left_alone(seven, path, described):
    descriptor_table("xrd", seven, rows_of(seven), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"xrd.parquet holds xrd\(two_theta_range=.*not ofm\(period_tag=True"):
        descriptor_table("ofm", seven, rows_of(seven), path)
    assert path.read_bytes() == before
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="holds something else, not xrd"):
        descriptor_table("xrd", seven, rows_of(seven), path)
    path.write_bytes(before[:-100])
    with pytest.raises(ValueError, match=r"xrd.parquet is no cache of descriptors .* delete it"):
        descriptor_table("xrd", seven, rows_of(seven), path)


def test_arguments_are_checked(seven):
    assert DESCRIPTORS == ("ofm", "xrd", "magpie", "fractions")
    with pytest.raises(ValueError, match="no descriptor 'soap'; there are ofm, xrd, magpie"):
        descriptor_table("soap", seven, rows_of(seven))
    with pytest.raises(ValueError, match="rows is empty"):
        xray_pattern(seven, rows_of(seven)[:0])
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        xray_pattern(seven, rows_of(seven), workers=0)

"""Embeddings of the published Crystal Twins networks, float64 (see ../shared/fixtures/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pyg_dim.data.batch import CrystalBatch
from pyg_dim.models import load_crystal_twins_checkpoint

FOLDER = Path(__file__).parents[2] / "../shared/fixtures"
EMBEDDINGS = FOLDER / "crystal_twins_embeddings.npz"
ATOMS = FOLDER / "cgcnn_atom_init.npz"
pytestmark = pytest.mark.skipif(not EMBEDDINGS.exists(), reason="needs the authors' numbers in ../shared/fixtures")

ROWS = (0, 42, 420, 738, 852, 912, 918, 966, 984, 1050)
TOLERANCE = 1e-10
ROUNDED = 1e-6
"""Embeddings move by less when positions do by a rounding error."""


class Theirs:
    """The stored structures, and what one of the two networks made of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights = FOLDER / f"crystal_twins_weights_{name.lower()}.npz"
        with np.load(EMBEDDINGS) as file:
            self.values = {key: file[key] for key in file.files}

    def of(self, key: str) -> list[torch.Tensor]:
        return [torch.from_numpy(np.asarray(self.values[f"s{row}/{key}"])) for row in ROWS]

    def results(self, key: str) -> list[torch.Tensor]:
        return self.of(f"CGCNN{self.name}/{key}")

    def batch(self) -> CrystalBatch:
        """All structures, without edges."""
        cells = self.of("lattice")
        counts = torch.tensor([len(z) for z in self.of("Z")])
        return CrystalBatch(
            z=torch.cat(self.of("Z")),
            pos=torch.cat([fractional @ cell for fractional, cell in zip(self.of("frac_coords"), cells, strict=True)]),
            cell=torch.stack(cells),
            batch=torch.repeat_interleave(counts),
            ptr=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        )

    def batch_with_their_graph(self) -> CrystalBatch:
        batch = self.batch()
        source = torch.cat([index + first for index, first in zip(self.of("nbr_idx"), batch.ptr, strict=False)])
        batch.edge_index = torch.stack([source.flatten(), torch.arange(len(source)).repeat_interleave(12)])
        batch.edge_dist = torch.cat(self.of("nbr_dist")).flatten()
        return batch


@pytest.fixture(scope="module", params=["SimSiam", "Barlow"])
def theirs(request) -> Theirs:
    return Theirs(request.param)


@pytest.fixture
def encoder(theirs: Theirs):
    return load_crystal_twins_checkpoint(theirs.weights, ATOMS, dtype=torch.float64)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_the_atom_vectors_are_those_of_cgcnn(encoder, theirs) -> None:
    assert encoder.site_input.species[1:101].equal(torch.from_numpy(theirs.values["atom_init"]).double())


def test_embeddings_on_their_graphs(encoder, theirs) -> None:
    with torch.no_grad():
        out = encoder.represent(theirs.batch_with_their_graph())
    assert out.crystal.shape == (10, {"SimSiam": 256, "Barlow": 128}[theirs.name])
    close(out.site, torch.cat(theirs.results("atom_fea")))
    close(out.hidden, F.softplus(torch.stack(theirs.results("pooled64"))))
    close(out.crystal, torch.stack(theirs.results("embedding")))


def test_embeddings_on_our_graphs(encoder, theirs) -> None:
    """Where no atom has two neighbours of one distance of which only one fits, and where that does not matter."""
    with torch.no_grad():
        ours = encoder(encoder.graph(theirs.batch()))
    embeddings = torch.stack(theirs.results("embedding"))
    clear = ~torch.stack(theirs.of("ambiguous"))
    assert clear.sum() == 6
    close(ours[clear], embeddings[clear])
    harmless = ~torch.stack(theirs.of("ambiguous_matters"))
    assert harmless.sum() == 9
    close(ours[harmless], embeddings[harmless], ROUNDED)


def test_files_of_the_program_are_read_like_arrays(encoder, theirs, tmp_path) -> None:
    with np.load(theirs.weights) as file:
        torch.save({name: torch.from_numpy(file[name]) for name in file.files}, tmp_path / "model.pth")
    other = load_crystal_twins_checkpoint(tmp_path / "model.pth", ATOMS, dtype=torch.float64)
    batch = theirs.batch_with_their_graph()
    assert other(batch).equal(encoder(batch))
    assert not other.training


def test_the_published_targets_are_embeddings_of_simsiam() -> None:
    """Without the last softplus they lie in the 64 dimensions that its crystal layer reaches."""
    output = load_crystal_twins_checkpoint(Theirs("SimSiam").weights, ATOMS, dtype=torch.float64).output
    with np.load(FOLDER / "hmof_mml_sample.npz") as file:
        targets = torch.from_numpy(file["embedding"]).double()
    linear = targets.expm1().log() - output.bias.detach()
    basis, _ = torch.linalg.qr(output.weight.detach())
    assert basis.shape == (256, 64)
    assert (linear - linear @ basis @ basis.T).norm() < 1e-5 * linear.norm()

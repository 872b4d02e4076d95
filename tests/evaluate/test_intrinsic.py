from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from pyg_dim.data.dataset import CrystalDataset
from pyg_dim.data.report import ImportReport
from pyg_dim.evaluate.families import FAMILIES, chemical_families, element_count
from pyg_dim.evaluate.intrinsic import DENSITY, ELECTRONEGATIVITY, PACKING, intrinsic_targets


def dataset_of(*crystals: tuple[list[int], torch.Tensor]) -> CrystalDataset:
    z = [torch.tensor(species) for species, _ in crystals]
    counts = torch.tensor([len(species) for species in z])
    return CrystalDataset(
        z=torch.cat(z),
        pos=torch.zeros(int(counts.sum()), 3),
        ptr=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
        cell=torch.stack([cell for _, cell in crystals]),
        oxidation=torch.zeros(int(counts.sum())),
        labels={},
        ids=pa.array([str(row) for row in range(len(z))]),
        report=ImportReport("test crystals", len(z)),
    )


def test_sodium_chloride_and_copper():
    salt = ([11] * 4 + [17] * 4, 5.6402 * torch.eye(3))
    # The primitive cell of face-centred copper, left-handed: a volume has no sign.
    copper = ([29], 3.6149 / 2 * torch.tensor([[1.0, 0, 1], [0.0, 1, 1], [1, 1, 0]]))
    targets = intrinsic_targets(dataset_of(salt, copper))
    assert targets[DENSITY][0] == pytest.approx(2.163, abs=0.003)
    assert targets[DENSITY][1] == pytest.approx(8.935, abs=0.01)
    assert targets[ELECTRONEGATIVITY].tolist() == pytest.approx([(0.93 + 3.16) / 2, 1.90])
    # Spheres of Slater's radius 1.35 A in copper.
    assert targets[PACKING][1] == pytest.approx(4 * 4 / 3 * torch.pi * 1.35**3 / 3.6149**3, rel=1e-6)


def test_a_supercell_has_the_targets_of_its_cell():
    cell = torch.tensor([[3.0, 0, 0], [0.5, 4, 0], [0, 0.3, 5]])
    double = torch.diag(torch.tensor([1.0, 2.0, 1.0])) @ cell
    for values in intrinsic_targets(dataset_of(([3, 9], cell), ([3, 9, 3, 9], double))).values():
        assert values.dtype == torch.float64
        assert values[1] == pytest.approx(float(values[0]), rel=1e-6)


def test_density_agrees_with_pymatgen():
    core = pytest.importorskip("pymatgen.core")
    cell = [[4.0, 0, 0], [1, 5, 0], [0, 1, 6]]
    structure = core.Structure(cell, ["Ca", "Ti", "O", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0, 0], [0, 0.5, 0]])
    ours = intrinsic_targets(dataset_of(([20, 22, 8, 8], torch.tensor(cell))))[DENSITY]
    assert float(ours) == pytest.approx(structure.density, rel=1e-6)


@pytest.mark.parametrize(
    ("species", "family"),
    [
        ([38, 22, 8, 8, 8], "oxide"),
        ([57, 8, 17], "oxide"),
        ([57, 8, 17, 17], "halide"),
        ([11, 17], "halide"),
        ([26, 33, 16], "chalcogenide"),
        ([31, 33], "pnictide"),
        ([83, 52, 52], "chalcogenide"),
        ([3, 13, 1, 1, 1, 1], "hydride"),
        ([20, 8, 8, 1, 1], "oxide"),
        ([14, 6], "carbide, silicide or boride"),
        ([28, 13], "intermetallic"),
        ([14, 14], "element"),
        ([8, 8], "element"),
        ([54, 9, 9], "other"),
    ],
)
def test_families(species: list[int], family: str):
    assert family in FAMILIES
    dataset = dataset_of(([29, 30], torch.eye(3)), (species, torch.eye(3)), ([3], torch.eye(3)))
    assert chemical_families(dataset) == ["intermetallic", family, "element"]
    assert element_count(dataset).tolist() == [2, len(set(species)), 1]

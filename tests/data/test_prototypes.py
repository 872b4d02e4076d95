import pytest
import torch

from pyg_dim.data.composition import composition_groups
from pyg_dim.data.elements import element_property
from pyg_dim.data.graphs import DenseSupercell
from pyg_dim.data.prototypes import decorated_prototypes


@pytest.fixture(scope="module")
def crystals():
    return decorated_prototypes(n=300, seed=3, dtype=torch.float64)


def test_size_and_names(crystals):
    assert len(crystals) == 300
    assert len(set(crystals.ids.to_pylist())) == 300
    assert not crystals.labels
    assert not crystals.report.left_out
    assert int(crystals.num_sites.min()) >= 1
    assert int(crystals.num_sites.max()) <= 50
    assert any("282 prototypes used, 6 with more than 50 sites not" in note for note in crystals.report.notes)


def test_crystals_are_varied(crystals):
    assert len(crystals.z.unique()) > 60
    assert len(composition_groups(crystals).unique()) > 250
    assert not set(crystals.z.tolist()) & {2, 10, 18, 36, 54, 86, 43, 61, 84, 85}


def test_no_overlapping_sites(crystals):
    batch = DenseSupercell()(crystals.gather(torch.arange(300)))
    radius = element_property("atomic_radius", batch.z)
    contact = 0.6 * radius[batch.edge_index].sum(0)
    apart = batch.edge_dist > 0
    assert int((~apart).sum()) == batch.num_nodes
    assert (batch.edge_dist[apart] >= contact[apart] - 1e-9).all()
    assert (batch.edge_dist[apart] >= 0.5 - 1e-9).all()


def test_volumes_are_those_of_solids(crystals):
    volume = torch.linalg.det(crystals.cell).abs() / crystals.num_sites
    assert 5 <= volume.min() <= volume.max() <= 130
    assert 10 < volume.median() < 40


def test_the_seed_decides(crystals):
    again, other = decorated_prototypes(n=300, seed=3, dtype=torch.float64), decorated_prototypes(n=300, seed=4)
    assert again.ids.to_pylist() == crystals.ids.to_pylist()
    assert torch.equal(again.pos, crystals.pos)
    assert other.ids.to_pylist() != crystals.ids.to_pylist()


def test_limit_on_sites_and_unreachable_number():
    # One site and one element: eight prototypes, so not every number of crystals exists.
    crystals = decorated_prototypes(n=800, max_sites=1)
    assert crystals.num_sites.unique().tolist() == [1]
    assert len(crystals) < 800
    assert f"only {len(crystals)} different decorations found, 800 were wanted" in crystals.report.notes
    with pytest.raises(ValueError, match="every prototype has more than max_sites=0"):
        decorated_prototypes(max_sites=0)
    with pytest.raises(ValueError, match="n must be at least 1"):
        decorated_prototypes(n=0)

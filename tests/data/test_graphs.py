import gzip
import json
from copy import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyg_dim.data.graphs import DenseSupercell, NearestNeighbors, RadiusGraph
from pyg_dim.data.minimum_image import minkowski_reduction
from pyg_dim.data.neighbors import neighbors_within
from pyg_dim.data.supercell import nearly_cubic
from pyg_dim.native import fault


@pytest.fixture(params=["kernel", "plain"])
def path(request, monkeypatch):
    """What finds the pairs of a dense graph."""
    if request.param == "plain":
        monkeypatch.setattr("pyg_dim.data.graphs.usable", lambda *values: False)
    elif (reason := fault()) is not None:
        pytest.skip(reason)
    return request.param


pytestmark = pytest.mark.usefixtures("path")


def rows(batch):
    """Lengths of the edges of each site, sorted: [N] lists."""
    width = torch.bincount(batch.edge_index[1], minlength=batch.num_nodes).tolist()
    return [part.sort().values for part in batch.edge_dist.split(width)]


def everything(dataset):
    return DenseSupercell()(dataset.gather(torch.arange(len(dataset))))


def test_each_site_sees_every_site_of_its_supercell(dataset):
    batch = everything(dataset)
    sizes = dataset.num_sites
    images = nearly_cubic(dataset.cell, sizes, 50).diagonal(dim1=1, dim2=2).prod(1)
    assert batch.edge_index.shape == (2, int((sizes**2 * images).sum()))
    source, target = batch.edge_index
    assert (target.diff() >= 0).all()
    assert torch.equal(batch.batch[source], batch.batch[target])
    for site in range(batch.num_nodes):
        crystal = int(batch.batch[site])
        expected = torch.arange(int(batch.ptr[crystal]), int(batch.ptr[crystal + 1])).repeat_interleave(images[crystal])
        assert torch.equal(source[target == site], expected)


def test_each_site_meets_itself_once_at_distance_zero(dataset):
    batch = everything(dataset)
    own = (batch.edge_index[0] == batch.edge_index[1]) & (batch.edge_shift == 0).all(1)
    assert batch.edge_index[1][own].tolist() == list(range(batch.num_nodes))
    assert (batch.edge_dist[own] == 0).all()
    assert (batch.edge_dist[~own] > 0).all()


def test_shifts_lead_to_the_distances(dataset):
    batch = everything(dataset)
    source, target = batch.edge_index
    translation = (batch.edge_shift.double().unsqueeze(1) @ batch.cell[batch.batch[target]]).squeeze(1)
    length = (batch.pos[source] + translation - batch.pos[target]).norm(dim=1)
    torch.testing.assert_close(length, batch.edge_dist, rtol=0, atol=1e-9)


def test_the_images_of_a_column_are_different_sites_of_the_supercell(dataset):
    batch = everything(dataset)
    supercell = nearly_cubic(dataset.cell, dataset.num_sites, 50).double()
    crystal = batch.batch[batch.edge_index[1]]
    fraction = (batch.edge_shift.double().unsqueeze(1) @ torch.linalg.inv(supercell)[crystal]).squeeze(1)
    site = torch.round((fraction - torch.floor(fraction + 1e-9)) * 1000).long()
    columns = torch.cat([batch.edge_index.T, site], dim=1)
    assert len(torch.unique(columns, dim=0)) == len(columns)


def test_distances_agree_with_pymatgen(dataset):
    from pymatgen.core import Lattice, Structure

    batch = everything(dataset)
    ours = rows(batch)
    supercells = nearly_cubic(dataset.cell, dataset.num_sites, 50)
    for crystal in range(len(dataset)):
        sites = slice(int(batch.ptr[crystal]), int(batch.ptr[crystal + 1]))
        structure = Structure(
            Lattice(dataset.cell[crystal].numpy()),
            dataset.z[sites].tolist(),
            batch.pos[sites].numpy(),
            coords_are_cartesian=True,
        )
        structure.make_supercell(supercells[crystal].tolist())
        images = int(supercells[crystal].diagonal().prod())
        reference = np.sort(structure.distance_matrix[::images], axis=1)
        np.testing.assert_allclose(torch.stack(ours[sites]), reference, rtol=0, atol=1e-9)


def test_distances_of_the_original_program(shared, make_dataset):
    fixture = np.load(shared("fixtures/sitenet_dim.npz"))
    entries = json.loads(gzip.decompress(shared("data/matbench_phonons.json.gz").read_bytes()))["data"]
    from pyg_dim.data.structures import sites_of

    # The entries of the fixture are known by formula, size and species in order.
    first = fixture["in/batch_csr"]
    numbers = [fixture["in/atomic_numbers"][a:b].tolist() for a, b in pairwise(first)]
    found = {}
    for structure, _ in entries[:100]:
        crystal = sites_of(structure)
        if crystal[0].tolist() in numbers:
            found.setdefault(numbers.index(crystal[0].tolist()), crystal)
    assert sorted(found) == list(range(8))

    batch = everything(make_dataset([found[k] for k in range(8)]))
    width = torch.bincount(batch.edge_index[1])
    for site, length in enumerate(batch.edge_dist.split(width.tolist())):
        crystal = int(fixture["in/batch_coo"][site])
        images, size = int(fixture["in/images"][crystal]), int(fixture["in/prim_size"][crystal])
        assert len(length) == images * size
        reference = torch.from_numpy(fixture["in/distances"][site, : images * size, 0])
        # Columns of one source site are its images, in any order; the original numbers went through single precision.
        ours = length.view(size, images).sort(dim=1).values
        torch.testing.assert_close(ours, reference.view(size, images).sort(dim=1).values, rtol=1e-7, atol=1e-6)


def test_batched_equals_one_by_one(dataset):
    together = everything(dataset)
    edge = site = 0
    for row in range(len(dataset)):
        alone = DenseSupercell()(dataset.gather(torch.tensor([row])))
        n = alone.edge_dist.numel()
        assert torch.equal(together.edge_index[:, edge : edge + n] - site, alone.edge_index)
        assert torch.equal(together.edge_shift[edge : edge + n], alone.edge_shift)
        torch.testing.assert_close(together.edge_dist[edge : edge + n], alone.edge_dist, rtol=0, atol=1e-12)
        edge, site = edge + n, site + alone.num_nodes


def transformed(crystal, rng, random_rotation, change):
    z, pos, cell = crystal
    if change == "rotation":
        rotation = random_rotation(rng)
        return (z, pos @ rotation, cell @ rotation), np.arange(len(z))
    if change == "origin":
        return (z, pos + rng.normal(size=3) * 5, cell), np.arange(len(z))
    if change == "images":
        return (z, pos + rng.integers(-3, 4, (len(z), 3)) @ cell, cell), np.arange(len(z))
    order = rng.permutation(len(z))
    return (z[order], pos[order], cell), order


@pytest.mark.parametrize("change", ["rotation", "origin", "images", "order"])
def test_distances_do_not_depend_on_the_description(
    change, make_dataset, random_crystal, symmetric_crystal, random_rotation
):
    rng = np.random.default_rng(5)
    for crystal in (symmetric_crystal, random_crystal(rng, 5), random_crystal(rng, 9, spread=0.9)):
        other, order = transformed(crystal, rng, random_rotation, change)
        before, after = rows(everything(make_dataset([crystal]))), rows(everything(make_dataset([other])))
        for new, old in enumerate(order):
            torch.testing.assert_close(after[new], before[old], rtol=0, atol=1e-9)


def test_single_precision_keeps_type_and_accuracy(dataset):
    double = everything(dataset)
    single = DenseSupercell()(
        dataset.gather(torch.arange(len(dataset))).to("cpu").apply(lambda t: t.float() if t.is_floating_point() else t)
    )
    assert single.edge_dist.dtype == torch.float32
    assert single.edge_index.dtype == single.edge_shift.dtype == torch.int64
    torch.testing.assert_close(single.edge_dist.double(), double.edge_dist, rtol=0, atol=1e-5)


def test_limit_on_sites(dataset):
    batch = DenseSupercell(max_sites=1)(dataset.gather(torch.arange(len(dataset))))
    assert batch.edge_dist.numel() == int((dataset.num_sites**2).sum())
    assert repr(DenseSupercell(7)) == "DenseSupercell(max_sites=7)"
    with pytest.raises(ValueError, match="max_sites"):
        DenseSupercell(0)


def test_nearest_neighbours_are_the_first_of_all(dataset):
    batch = NearestNeighbors(5, 8.0)(dataset.gather(torch.arange(len(dataset))))
    every = neighbors_within(batch.pos, batch.cell, batch.ptr, 8.0, batch.z)
    source, target = batch.edge_index
    assert torch.bincount(target).tolist() == [5] * batch.num_nodes
    assert (target.diff() >= 0).all()
    for site in range(batch.num_nodes):
        mine, theirs = target == site, every.target == site
        assert source[mine].equal(every.source[theirs][:5])
        assert batch.edge_shift[mine].equal(every.shift[theirs][:5])
        assert batch.edge_dist[mine].equal(every.distance[theirs][:5])


def test_missing_neighbours_are_left_out_or_padded(make_dataset):
    """Two sites that see each other alone, one that sees nothing, and a crystal with plenty."""
    box, dense = 40 * np.eye(3), 3 * np.eye(3)
    crystals = [([11], np.zeros((1, 3)), dense), ([1, 2], [[0, 0, 0], [0, 0, 1.5]], box), ([3], np.ones((1, 3)), box)]
    rows_ = torch.arange(3)
    plain = NearestNeighbors(4, 8.0)(make_dataset(crystals).gather(rows_))
    assert plain.edge_index.tolist() == [[0, 0, 0, 0, 2, 1], [0, 0, 0, 0, 1, 2]]
    padded = NearestNeighbors(4, 8.0, pad=True)(make_dataset(crystals).gather(rows_))
    assert padded.edge_index[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert padded.edge_index[0].tolist() == [0] * 4 + [2, 1, 1, 1] + [1, 1, 1, 1] + [3] * 4
    expected = [3.0] * 4 + [1.5, 9, 9, 9] * 2 + [9.0] * 4
    torch.testing.assert_close(padded.edge_dist, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert padded.edge_shift[:4].equal(plain.edge_shift[:4])
    assert padded.edge_shift[:4].abs().sum() == 4
    assert padded.edge_shift[4:].abs().sum() == 0


@pytest.mark.parametrize("pad", [False, True])
def test_nearest_neighbours_keep_the_type_of_the_positions(make_dataset, random_crystal, pad):
    crystal = random_crystal(np.random.default_rng(1), 4)
    batch = NearestNeighbors(pad=pad)(make_dataset([crystal], dtype=torch.float32).gather(torch.tensor([0])))
    assert batch.edge_dist.dtype == torch.float32
    assert batch.edge_index.dtype == batch.edge_shift.dtype == torch.int64


def test_nearest_neighbours_check_their_arguments():
    assert repr(NearestNeighbors(6, 5.0, True)) == "NearestNeighbors(k=6, cutoff=5.0, pad=True, ties=False)"
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        NearestNeighbors(0)
    for cutoff in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="cutoff must be a positive length"):
            NearestNeighbors(cutoff=cutoff)
        with pytest.raises(ValueError, match="cutoff must be a positive length"):
            RadiusGraph(cutoff)
    with pytest.raises(ValueError, match="pad gives every site k edges and ties gives some of them more"):
        NearestNeighbors(pad=True, ties=True)


def test_the_radius_graph_has_all_neighbours(dataset):
    batch = RadiusGraph(4.5)(dataset.gather(torch.arange(len(dataset))))
    every = neighbors_within(batch.pos, batch.cell, batch.ptr, 4.5, batch.z)
    assert batch.edge_index.equal(torch.stack([every.source, every.target]))
    assert batch.edge_shift.equal(every.shift)
    assert batch.edge_dist.equal(every.distance)
    assert batch.edge_dist.numel() > 500
    assert repr(RadiusGraph(4.5)) == "RadiusGraph(cutoff=4.5)"


def test_ties_are_kept_whole_on_request(make_dataset):
    """Simple cubic: shells of 6, 12 and 8."""
    batch = make_dataset([([11], np.zeros((1, 3)), 3 * np.eye(3))]).gather(torch.tensor([0]))
    assert [NearestNeighbors(k)(batch).edge_dist.numel() for k in (1, 6, 7, 19)] == [1, 6, 7, 19]
    assert [NearestNeighbors(k, ties=True)(batch).edge_dist.numel() for k in (1, 6, 7, 19)] == [6, 6, 18, 26]


@pytest.mark.parametrize(
    "graph", [DenseSupercell(), RadiusGraph(4.0), NearestNeighbors(5), NearestNeighbors(5, pad=True)]
)
def test_a_crystal_without_ptr_is_a_batch_of_one(dataset, graph):
    batch = dataset.gather(torch.tensor([4]))
    alone = copy(batch)
    del alone["ptr"], alone["batch"]
    batch, alone = graph(batch), graph(alone)
    assert all(batch[key].equal(alone[key]) for key in ("edge_index", "edge_shift", "edge_dist"))
    assert "ptr" not in alone


class Asked(TorchDispatchMode):
    """Operators whose answer, or the size of whose result, a GPU would have to be asked for."""

    ANSWERS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "_linalg_check_errors")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        without_size = name == "aten.repeat_interleave.Tensor" and (kwargs or {}).get("output_size") is None
        if without_size or any(answer in name for answer in self.ANSWERS):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("path", ["plain"], indirect=True)
def test_dense_pairs_ask_a_device_for_little(dataset):
    """Whether each round of the lattice reduction has changed something, and whether lattices can be inverted.

    The two sizes of the graph come as a list, which is no operator on a CPU.
    """
    batch = dataset.gather(torch.arange(len(dataset)))
    cell = nearly_cubic(batch.cell, batch.ptr.diff(), 50).double() @ batch.cell
    with Asked() as reduction:
        minkowski_reduction(cell)
    with Asked() as asked:
        nearly_cubic(batch.cell, batch.ptr.diff(), 50)
    checks_of_a_cpu = asked.names
    with Asked() as asked:
        DenseSupercell()(batch)
    assert 1 <= len(reduction.names) <= 10
    inversion = ["aten._linalg_check_errors.default"]
    assert sorted(asked.names) == sorted(reduction.names + inversion + checks_of_a_cpu)
    # one_hot looks at its numbers on a CPU alone.
    assert checks_of_a_cpu == ["aten._local_scalar_dense.default"] * 2

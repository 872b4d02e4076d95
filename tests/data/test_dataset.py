import numpy as np
import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from pyg_dim.data import CrystalBatch, CrystalDataset, DenseSupercell, NearestNeighbors, RadiusGraph
from pyg_dim.data.elements import site_features


def test_flat_layout(dataset):
    assert len(dataset) == 12
    assert dataset.num_sites.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 2, 4]
    assert dataset.ptr[-1] == dataset.z.numel() == dataset.pos.shape[0] == dataset.oxidation.numel() == 53
    assert repr(dataset) == "CrystalDataset(12 crystals, 53 sites, labels=['energy', 'gap'])"


def test_gather_equals_a_loop_over_crystals(dataset):
    rows = torch.tensor([8, 0, 3, 3])
    batch = dataset.gather(rows, targets=["gap", "energy"])
    assert isinstance(batch, CrystalBatch)
    assert batch.num_graphs == 4
    assert batch.num_nodes == 9 + 1 + 4 + 4
    assert batch.max_sites == 9
    assert batch.ptr.tolist() == [0, 9, 10, 14, 18]
    assert batch.batch.tolist() == [0] * 9 + [1] + [2] * 4 + [3] * 4
    for k, row in enumerate(rows.tolist()):
        here, there = batch.batch == k, slice(int(dataset.ptr[row]), int(dataset.ptr[row + 1]))
        assert torch.equal(batch.z[here], dataset.z[there])
        assert torch.equal(batch.pos[here], dataset.pos[there])
    assert torch.equal(batch.cell, dataset.cell[rows])
    assert torch.equal(batch.row, rows)
    assert torch.equal(batch.x, site_features(batch.z, batch.oxidation, torch.float64))
    expected = torch.stack([dataset.labels["gap"][rows], dataset.labels["energy"][rows]], dim=1)
    torch.testing.assert_close(batch.y, expected, equal_nan=True)
    assert "y" not in dataset.gather(rows)


def test_batch_keeps_its_class_when_moved(dataset):
    batch = dataset.gather(torch.tensor([1, 2])).to("cpu")
    assert isinstance(batch, CrystalBatch)
    assert batch.num_graphs == 2


def test_missing_target_is_an_error_that_lists_the_columns(dataset):
    with pytest.raises(ValueError, match=r"no target column 'nope'; its labels are 'energy', 'gap'"):
        dataset.target("nope")
    with pytest.raises(ValueError, match="no target column 'nope'"):
        dataset.gather(torch.tensor([0]), targets=["nope"])


def test_subset(dataset):
    part = dataset.subset(torch.tensor([5, 1]))
    assert part.ids.to_pylist() == ["c5", "c1"]
    assert torch.equal(part.labels["energy"], dataset.labels["energy"][[5, 1]])
    assert torch.equal(part.gather(torch.tensor([1])).pos, dataset.gather(torch.tensor([1])).pos)
    assert part.formula(0) == dataset.formula(5)
    chosen = torch.zeros(len(dataset), dtype=torch.bool)
    chosen[[1, 5]] = True
    assert dataset.subset(chosen).ids.to_pylist() == ["c1", "c5"]
    for rows in (slice(3), [1, 2], torch.tensor([1, 2]), "c1"):
        with pytest.raises(TypeError, match=r"take subset\(rows\)"):
            dataset[rows]


@pytest.mark.parametrize(
    "rows", [[5, 1], (5, 1), range(5, 0, -4), np.array([5, 1], dtype=np.uint8), torch.tensor([5, 1], dtype=torch.int32)]
)
def test_rows_of_a_subset_may_be_any_whole_numbers(dataset, rows):
    assert dataset.subset(rows).ids.to_pylist() == ["c5", "c1"]


def test_other_rows_of_a_subset(dataset):
    mask = [row in (1, 5) for row in range(len(dataset))]
    assert dataset.subset(mask).ids.to_pylist() == ["c1", "c5"]
    assert len(dataset.subset([])) == 0
    for rows in ([0.0, 1.0], ["c1"], "c1", 3, torch.tensor([0.0]), torch.tensor([[0]])):
        with pytest.raises(TypeError, match=r"^rows are"):
            dataset.subset(rows)
    for rows in ([-1], [0, len(dataset)], mask[1:]):
        with pytest.raises(IndexError, match=f"of {len(dataset)} crystals|data set of"):
            dataset.subset(rows)


def test_structures_in_memory():
    from ase import Atoms
    from pymatgen.core import Lattice, Structure

    conventional = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    atoms = Atoms("CsCl", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[4.1, 4.1, 4.1], pbc=True)
    dataset = CrystalDataset.from_structures(
        [conventional, atoms, Atoms("H2O")], ids=["salt", "cscl", "water"], labels={"gap": [5.0, np.nan, 1.0]}
    )
    assert dataset.ids.to_pylist() == ["salt", "cscl"]
    assert dataset.num_sites.tolist() == [2, 2]
    assert [dataset.formula(row) for row in (0, 1)] == ["NaCl", "CsCl"]
    assert dataset.pos.dtype == dataset.cell.dtype == torch.float32
    assert dataset.report.counts() == {"not periodic in three directions": 1}
    assert "1 cells reduced to the primitive cell" in dataset.report.all_notes()
    torch.testing.assert_close(torch.linalg.det(dataset.cell[0]).abs(), torch.tensor(5.6**3 / 4))
    torch.testing.assert_close(dataset.target("gap"), torch.tensor([5.0, np.nan], dtype=torch.float64), equal_nan=True)


def test_labels_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="gap has 2 entries for 1 structures"):
        CrystalDataset.from_structures([{}], labels={"gap": [1.0, 2.0]})


def test_oxidation_must_be_a_known_choice(lay_out):
    from pyg_dim.data.report import ImportReport

    with pytest.raises(ValueError, match="'zero' or 'guess', not 'magic'"):
        CrystalDataset.from_raw(lay_out([([1], [[0.0] * 3], 3 * np.eye(3))]), ImportReport("t", 1), oxidation="magic")


def test_one_crystal_is_a_pyg_data_object(dataset):
    crystal = dataset[3]
    assert isinstance(crystal, Data)
    assert (crystal.num_nodes, crystal.id, crystal.row.tolist(), crystal.max_sites) == (4, "c3", [3], 4)
    batch = dataset.gather(torch.tensor([3]), ["energy", "gap"])
    for key in ("z", "x", "oxidation", "pos", "cell", "y"):
        torch.testing.assert_close(crystal[key], batch[key], rtol=0, atol=0, equal_nan=True)
    assert crystal.cell.shape == (1, 3, 3)
    assert set(crystal.keys()) == {"z", "x", "oxidation", "pos", "cell", "y", "row", "id"}
    assert dataset[-1].id == "c11"
    assert [one.id for one in dataset] == dataset.ids.to_pylist()
    for row in (12, -13):
        with pytest.raises(IndexError, match="of a data set of 12 crystals"):
            dataset[row]


@pytest.mark.parametrize("graph", [DenseSupercell(12), NearestNeighbors(6), RadiusGraph(4.0)], ids=repr)
@pytest.mark.parametrize("as_transform", [False, True])
def test_batches_of_pygs_loader_are_understood(dataset, graph, as_transform):
    """With edges from the graph applied to the batch, or to each crystal as a transform."""
    rows = [7, 0, 3]
    crystals = [graph(dataset[row]) if as_transform else dataset[row] for row in rows]
    (batch,) = DataLoader(crystals, batch_size=3)
    if not as_transform:
        batch = graph(batch)
    expected = graph(dataset.gather(torch.tensor(rows), ["energy", "gap"]))
    assert (batch.num_graphs, batch.max_sites) == (expected.num_graphs, expected.max_sites) == (3, 8)
    assert batch.id == ["c7", "c0", "c3"]
    for key in set(expected.keys()) - {"max_sites"}:
        torch.testing.assert_close(batch[key], expected[key], rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", ["sitenet", "cgcnn"])
def test_batches_of_pygs_loader_train_an_encoder(dataset, name):
    from pyg_dim.models import build
    from pyg_dim.objectives.deep_infomax import DeepInfoMax

    objective = DeepInfoMax(build(name).double(), kinds=("other", "composition", "polymorph", "permutation"))
    (batch,) = DataLoader(dataset, batch_size=12)
    ours = objective.encoder.graph(dataset.gather(torch.arange(12)))
    theirs = objective.encoder.graph(batch)
    losses = []
    for one in (ours, theirs):
        torch.manual_seed(0)
        losses.append(objective(one)["total"])
    torch.testing.assert_close(*losses, rtol=0, atol=1e-9)


def test_to_a_device_shares_what_is_there(dataset):
    moved = dataset.to("cpu")
    assert moved is not dataset
    assert moved.pos is dataset.pos
    assert moved.labels.keys() == dataset.labels.keys()


def test_labels_are_replaced_in_a_new_data_set(dataset):
    more = dataset.with_labels({"gap": torch.ones(12), "new": torch.zeros(12)})
    assert list(more.labels) == ["energy", "gap", "new"]
    assert more.target("gap").tolist() == [1] * 12
    assert dataset.target("gap").isnan().any()
    with pytest.raises(ValueError, match=r"label 'new' has shape \[3\] for 12 crystals"):
        dataset.with_labels({"new": torch.zeros(3)})


def test_memory_on_another_device(dataset):
    there = dataset.to("meta")
    moved = [there.z, there.pos, there.cell, there.oxidation, *there.labels.values()]
    assert all(tensor.is_meta for tensor in moved)
    assert dataset.num_bytes == 53 * (8 + 24 + 8) + 12 * (72 + 8 * len(dataset.labels)) == there.num_bytes


def test_batches_are_gathered_on_the_device(dataset):
    """Of numbers that are there; a device without numbers tells that none is asked for."""
    here, there = (d.gather(torch.tensor([8, 0, 3]), ["gap"]) for d in (dataset, dataset.to("meta")))
    for key, value in here.to_dict().items():
        if isinstance(value, torch.Tensor):
            assert there[key].is_meta
            assert (there[key].shape, there[key].dtype) == (value.shape, value.dtype)
        else:
            assert there[key] == value


@pytest.fixture(params=["fingerprint", "embedding"])
def key(request):
    """What comes with every crystal beside its sites."""
    return request.param


@pytest.fixture
def marked(dataset, key):
    """With a fingerprint, or an embedding, of five columns that tells the row."""
    return getattr(dataset, f"with_{key}")(torch.arange(12)[:, None] * 10 + torch.arange(5))


def test_fingerprints_and_embeddings_become_part_of_batches(dataset, marked, key):
    assert dataset.fingerprint is dataset.embedding is None
    assert key not in dataset.gather(torch.tensor([0]))
    assert getattr(marked, key).dtype == torch.float64 == marked.pos.dtype
    assert marked.pos is dataset.pos
    batch = marked.gather(torch.tensor([8, 0, 3, 3]))
    assert batch[key].shape == (4, 5)
    assert batch[key][:, 0].tolist() == [80, 0, 30, 30]
    assert batch[key][0].tolist() == [80, 81, 82, 83, 84]
    single = dataset.to("cpu")
    single.pos = single.pos.float()
    values = getattr(single, f"with_{key}")(torch.zeros(12, 5, dtype=torch.float64))
    assert getattr(values, key).dtype == torch.float32


def test_fingerprints_and_embeddings_follow_their_crystals(marked, key):
    part = marked.subset(torch.tensor([5, 1]))
    assert getattr(part, key)[:, 0].tolist() == [50, 10]
    assert part.gather(torch.tensor([1]))[key][0, 0] == 10
    assert getattr(marked.with_labels({"new": torch.zeros(12)}), key) is getattr(marked, key)
    assert getattr(marked.to("cpu"), key) is getattr(marked, key)
    assert getattr(marked.to("meta"), key).is_meta
    crystals = [marked[row] for row in (7, 2)]
    assert crystals[0][key].shape == (1, 5)
    (batch,) = DataLoader(crystals, batch_size=2)
    assert batch[key][:, 0].tolist() == [70, 20]


def test_memory_counts_fingerprints_and_embeddings(dataset, marked):
    assert marked.num_bytes == dataset.num_bytes + 12 * 5 * 8 == marked.to("meta").num_bytes


@pytest.mark.parametrize("shape", [(12,), (11, 5), (12, 5, 1)])
def test_fingerprints_and_embeddings_of_another_shape_are_an_error(dataset, key, shape):
    with pytest.raises(ValueError, match=rf"{key} has shape \[.*\] for 12 crystals; it must be \[n, F\]"):
        getattr(dataset, f"with_{key}")(torch.zeros(shape))


@pytest.mark.parametrize("graph", [DenseSupercell(12), NearestNeighbors(6), RadiusGraph(4.0)], ids=repr)
def test_graphs_and_false_samples_leave_them_alone(dataset, marked, key, graph):
    """Those of the true crystals stay with the geometry, and nothing else is changed by them."""
    from pyg_dim.false_samples.permutation import permutation
    from pyg_dim.false_samples.transplant import transplant

    bare, batch = (graph(d.gather(torch.arange(12))) for d in (dataset, marked))
    assert set(batch.keys()) - set(bare.keys()) == {key}
    for make in (transplant, permutation):
        expected, made = (make(b, generator=torch.Generator().manual_seed(0)).batch for b in (bare, batch))
        assert torch.equal(made[key], batch[key])
        for other in set(expected.keys()) - {"max_sites"}:
            assert torch.equal(made[other], expected[other]), other

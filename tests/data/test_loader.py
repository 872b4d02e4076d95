import itertools

import numpy as np
import pytest
import torch

from pyg_dim.data import CrystalLoader, DenseSupercell, NearestNeighbors, RadiusGraph


@pytest.fixture
def crystals(make_dataset, random_crystal):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 13, 60)
    return make_dataset([random_crystal(rng, int(n)) for n in sizes], {"energy": rng.normal(size=60)})


def rows_of(loader):
    return [batch.row.tolist() for batch in loader]


def test_every_crystal_once_within_the_budget(crystals):
    loader = CrystalLoader(crystals, DenseSupercell(), batch_sites=40, targets=["energy"])
    batches = list(loader)
    assert len(batches) == len(loader)
    assert sorted(itertools.chain.from_iterable(batch.row.tolist() for batch in batches)) == list(range(60))
    for batch, following in itertools.pairwise(batches):
        assert batch.num_nodes <= 40
        # Filled: the first crystal of the next batch would not have fitted.
        assert batch.num_nodes + int(crystals.num_sites[following.row[0]]) > 40
        assert batch.y.shape == (batch.num_graphs, 1)
        assert torch.equal(batch.y[:, 0], crystals.labels["energy"][batch.row])
        assert batch.edge_dist.numel() == batch.edge_index.shape[1] > 0
        assert batch.x.shape == (batch.num_nodes, 9)


def test_a_crystal_above_the_budget_makes_a_batch_of_its_own(crystals):
    loader = CrystalLoader(crystals, DenseSupercell(), batch_sites=5)
    seen = [(batch.num_graphs, batch.num_nodes) for batch in loader]
    assert sum(graphs for graphs, _ in seen) == 60
    assert all(nodes <= 5 or graphs == 1 for graphs, nodes in seen)


def test_order_is_reproducible_and_changes_with_seed_and_epoch(crystals):
    def order(seed, epoch):
        loader = CrystalLoader(crystals, DenseSupercell(), batch_sites=40, seed=seed)
        loader.set_epoch(epoch)
        return rows_of(loader)

    assert order(1, 2) == order(1, 2)
    orders = [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_without_shuffling_the_order_is_that_of_the_data_set(crystals):
    loader = CrystalLoader(crystals, DenseSupercell(), batch_sites=40, shuffle=False)
    assert list(itertools.chain.from_iterable(rows_of(loader))) == list(range(60))
    loader.set_epoch(5)
    assert list(itertools.chain.from_iterable(rows_of(loader))) == list(range(60))


@pytest.mark.parametrize("size", [2, 3, 50])
def test_processes_share_the_batches_evenly(crystals, monkeypatch, size):
    loader = CrystalLoader(crystals, DenseSupercell(), batch_sites=40)
    whole = rows_of(loader)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)
    shares = []
    for rank in range(size):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(rows_of(loader))
        assert len(shares[-1]) == len(loader)
    steps = [loader.crystals(step) for step in range(len(loader))]
    assert {len(step) for step in steps} == {size}
    # Common to all processes; what is repeated adds nothing.
    counts = list(itertools.chain.from_iterable(steps))
    assert counts == [len(batch) for batch in whole] + [0] * (len(counts) - len(whole))
    assert all(
        steps[step][rank] in (len(batch), 0) for rank, share in enumerate(shares) for step, batch in enumerate(share)
    )
    assert len({len(share) for share in shares}) == 1
    together = list(itertools.chain.from_iterable(shares))
    assert all(batch in together for batch in whole)
    # No more repetition than needed for equal shares.
    assert len(together) - len(whole) < size


def test_leaving_early_and_starting_again(crystals):
    loader = CrystalLoader(crystals, DenseSupercell(), batch_sites=40)
    first = next(iter(loader))
    assert torch.equal(first.row, next(iter(loader)).row)


def test_an_error_while_building_reaches_the_caller(crystals):
    def broken(batch):
        raise RuntimeError("no graph")

    with pytest.raises(RuntimeError, match="no graph"):
        list(CrystalLoader(crystals, broken))


def test_bad_arguments(crystals):
    with pytest.raises(ValueError, match="no target column 'gap'"):
        CrystalLoader(crystals, DenseSupercell(), targets=["gap"])
    with pytest.raises(ValueError, match="batch_sites"):
        CrystalLoader(crystals, DenseSupercell(), batch_sites=0)
    with pytest.raises(ValueError, match="empty"):
        CrystalLoader(crystals.subset(torch.tensor([], dtype=torch.long)), DenseSupercell())


def test_buckets_hold_crystals_of_like_size_and_drop_none(crystals):
    loader = CrystalLoader(crystals, DenseSupercell(), batch_sites=40, bucket=True)
    batches = list(loader)
    assert sorted(itertools.chain.from_iterable(batch.row.tolist() for batch in batches)) == list(range(60))
    spans = sorted((int(batch.ptr.diff().min()), int(batch.ptr.diff().max())) for batch in batches)
    # One after the other, sizes do not overlap.
    assert all(most <= least for (_, most), (least, _) in itertools.pairwise(spans))
    first = [int(batch.ptr.diff().min()) for batch in batches]
    assert first != sorted(first)
    loader.set_epoch(1)
    assert rows_of(loader) != [batch.row.tolist() for batch in batches]
    in_order = CrystalLoader(crystals, DenseSupercell(), batch_sites=40, shuffle=False, bucket=True)
    sizes = torch.cat([batch.ptr.diff() for batch in in_order])
    assert (sizes.diff() >= 0).all()


@pytest.mark.parametrize("options", [{}, {"bucket": True}, {"shuffle": False}])
def test_it_goes_on_where_it_was_left(crystals, options):
    def make(seed=3):
        return CrystalLoader(crystals, DenseSupercell(), batch_sites=40, seed=seed, **options)

    loader = make()
    loader.set_epoch(2)
    whole = rows_of(loader)
    loader.set_epoch(2)
    first = [batch.row.tolist() for batch in itertools.islice(loader, 3)]
    state = loader.state_dict()
    settings = {"seed": 3, "crystals": 60, "shuffle": True, "processes": 1, "batch_sites": 40, "bucket": False}
    assert state == {"epoch": 2, "position": 3} | settings | options
    rest = make()
    rest.load_state_dict(state)
    assert rest.state_dict() == state
    assert first + rows_of(rest) == whole
    assert rest.state_dict()["position"] == len(whole)
    # The one after that is whole again; a complete epoch is followed by the next.
    assert rows_of(rest) == whole
    following = make()
    following.load_state_dict(rest.state_dict())
    assert following.state_dict() == state | {"epoch": 3, "position": 0}
    loader.set_epoch(3)
    assert rows_of(following) == rows_of(loader)
    with pytest.raises(ValueError, match="a loader with seed 3; this one has seed 4"):
        make(4).load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_sites": 20}, "batch_sites 40; this one has batch_sites 20"),
        ({"bucket": True}, "bucket False; this one has bucket True"),
        ({"shuffle": False}, "shuffle True; this one has shuffle False"),
        ({"seed": 1, "bucket": True}, "seed 0, bucket False; this one has seed 1, bucket True"),
    ],
)
def test_a_loader_with_other_batches_does_not_go_on(crystals, change, message):
    state = CrystalLoader(crystals, DenseSupercell(), batch_sites=40).state_dict()
    other = CrystalLoader(crystals, DenseSupercell(), **({"batch_sites": 40} | change))
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(state)
    del state["batch_sites"]
    with pytest.raises(ValueError, match="batch_sites unknown"):
        other.load_state_dict(state)


def test_another_number_of_processes_does_not_go_on(crystals, monkeypatch):
    loader = CrystalLoader(crystals, DenseSupercell(), batch_sites=40)
    everywhere = CrystalLoader(crystals, DenseSupercell(), batch_sites=40, shard=False)
    state = loader.state_dict()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with pytest.raises(ValueError, match="processes 1; this one has processes 2"):
        loader.load_state_dict(state)
    # Each process has all batches, however many there are.
    everywhere.load_state_dict(state)


def test_batches_that_are_passed_over_are_not_built(crystals):
    built = []
    loader = CrystalLoader(crystals, lambda batch: built.append(batch.row) or batch, batch_sites=40)
    rest = [batch.row.tolist() for batch in loader.batches(4)]
    assert [rows.tolist() for rows in built] == rest
    assert len(rest) == len(loader) - 4
    assert list(loader.batches(len(loader))) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graph", [DenseSupercell(), NearestNeighbors(8), RadiusGraph(4.0)], ids=repr)
def test_batches_of_a_data_set_on_the_device(crystals, graph):
    there = CrystalLoader(crystals.to("cuda"), graph, batch_sites=40, targets=["energy"])
    here = CrystalLoader(crystals, graph, batch_sites=40, targets=["energy"])
    for mine, theirs in zip(there, here, strict=True):
        for key, value in theirs.to_dict().items():
            if isinstance(value, torch.Tensor):
                assert mine[key].is_cuda
                torch.testing.assert_close(mine[key].cpu(), value, rtol=0, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_stay_whole_while_steps_use_them(crystals):
    """Each is looked at late, when the next ones have been built and let go."""
    loader = CrystalLoader(crystals.to("cuda"), DenseSupercell(), batch_sites=12)
    expected = [batch.edge_dist.double().sum() for batch in CrystalLoader(crystals, DenseSupercell(), batch_sites=12)]
    busy = torch.randn(4096, 4096, device="cuda")
    sums = []
    for batch in loader:
        busy = (busy @ busy).clamp(-1, 1)
        sums.append(batch.edge_dist.double().sum() + 0 * busy[0, 0])
        del batch
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack(expected), rtol=1e-6, atol=0)

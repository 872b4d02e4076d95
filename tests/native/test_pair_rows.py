from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch

from pyg_dim.false_samples.corruption import relabel
from pyg_dim.native import pair_rows as module
from pyg_dim.native.pair_rows import pair_rows, rows_of

pytestmark = pytest.mark.usefixtures("kernels")
CRYSTALS = [[3, 0, 5], [0], [1], [], [500, 1, 0, 17], [4, 4]]


def check(rows, source, target, sites, length) -> None:
    counts = target.bincount(minlength=sites)
    assert rows.first.tolist() == [0, *counts.cumsum(0).tolist()]
    assert rows.longest == (int(counts.max()) if sites else 0)
    assert rows.source.equal(source)
    block = rows.block[: rows.blocks + 1]
    assert block[0] == 0
    assert block[-1] == sites
    assert (block.diff() > 0).all()
    block_of = torch.repeat_interleave(block.diff())
    # No pair leads out of a block ...
    assert block_of[source].equal(block_of[target])
    # ... nor could one be cut in two.
    for begin, end in zip(block[:-1].tolist(), block[1:].tolist(), strict=True):
        inside = [(i, j) for i, j in zip(target.tolist(), source.tolist(), strict=True) if begin <= i < end]
        for cut in range(begin + 1, end):
            assert any((i < cut) != (j < cut) for i, j in inside)
    if length is None:
        assert not rows.place.numel()
        assert not rows.member.numel()
        return
    bits = length.view(torch.int32 if length.dtype == torch.float32 else torch.int64)
    keys = list(zip(block_of[target].tolist(), bits.tolist(), strict=True))
    assert rows.member.numel() == len(set(keys))
    assert rows.place.tolist() == [[keys[m] for m in rows.member.tolist()].index(key) for key in keys]


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "crystals", [CRYSTALS, [[0, 0]], [[1]], [[2, 2]] * 9], ids=["many", "no pairs", "one", "equal"]
)
def test_against_bincount_and_unique(pairs_of, crystals, dtype) -> None:
    source, target = pairs_of(crystals)
    length = None
    if dtype is not None:
        length = torch.randint(6, source.shape).to(dtype) + 1
        # Equal bit by bit, not nearly.
        length = torch.where(torch.rand(source.shape) < 0.3, length.nextafter(torch.zeros_like(length)), length)
    sites = sum(map(len, crystals))
    check(pair_rows(source, target, sites, length), source, target, sites, length)


def test_nothing_at_all() -> None:
    none = torch.empty(0, dtype=torch.long)
    rows = pair_rows(none, none, 0, torch.empty(0))
    assert rows.blocks == rows.longest == 0
    assert rows.first.tolist() == [0]


def test_blocks_of_linked_crystals_are_one(pairs_of) -> None:
    source, target = pairs_of([[2, 2], [2, 2], [2, 2]])
    source = source.clone()
    source[0] = 3  # from the first crystal to the second
    rows = pair_rows(source, target, 6)
    check(rows, source, target, 6, None)
    assert 4 in rows.block.tolist()


def test_strided_pairs(pairs_of) -> None:
    source, target = pairs_of([[3, 2], [4]])
    wide = torch.stack([source, target], dim=1)
    length = torch.rand(9, 2)[:, 0]
    rows = pair_rows(wide[:, 0], wide[:, 1], 3, length)
    check(rows, source, target, 3, length.contiguous())


@pytest.mark.parametrize(
    ("source", "target", "length"),
    [
        ([0, 1, 0], [0, 1, 0], None), ([0, 2], [0, 1], None), ([-1, 0], [0, 1], None), ([0, 0], [0, 2], None),
        ([0, 0], [-1, 0], None), ([0], [0, 1], None), ([0, 1], [0, 1], [1.0]),
    ],
    ids=["unsorted", "source", "negative source", "target", "negative target", "sources", "lengths"],
)  # fmt: skip
def test_what_are_no_rows(source, target, length) -> None:
    length = None if length is None else torch.tensor(length)
    with pytest.raises(ValueError, match="pairs"):
        pair_rows(torch.tensor(source), torch.tensor(target), 2, length)


def test_integers_of_another_type_are_not_read() -> None:
    with pytest.raises(ValueError, match="int64"):
        pair_rows(torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int32), 1)


def test_rows_of_a_batch_are_found_once(batch_of) -> None:
    batch = batch_of(["NaCl", "TiO2"])
    rows = rows_of(batch)
    assert rows is not None
    assert rows_of(batch) is rows
    assert rows_of(relabel(batch, torch.randperm(batch.z.numel()))) is rows


def test_changed_edges_are_another_graph(batch_of) -> None:
    batch = batch_of(["NaCl", "TiO2"])
    rows = rows_of(batch)
    batch.edge_dist.mul_(1.1)
    changed = rows_of(batch)
    assert changed is not rows
    batch.edge_dist = batch.edge_dist.clone()
    assert rows_of(batch) is not changed
    before = rows_of(batch)
    batch.edge_index[0] = batch.edge_index[0].flip(0).clamp(max=1)
    assert rows_of(batch) is not before
    assert rows_of(batch).source.equal(batch.edge_index[0])


def test_another_number_of_sites_is_another_graph(batch_of) -> None:
    batch = batch_of(["NaCl", "TiO2"])
    assert rows_of(batch).first.numel() == 9
    more = copy.copy(batch)
    more.z = torch.cat([batch.z, batch.z[:1]])
    assert rows_of(more).first.numel() == 10


def test_copies_do_not_take_stale_rows_along(batch_of) -> None:
    """A copy counts its changes from zero again."""
    batch = batch_of(["NaCl", "triclinic"])
    rows_of(batch)
    batch.edge_dist.copy_(torch.rand_like(batch.edge_dist).round(decimals=1))
    deep = copy.deepcopy(batch)
    stream = io.BytesIO()
    torch.save(batch, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)  # a batch, as it is sent to another process
    expected = pair_rows(*batch.edge_index, batch.z.numel(), batch.edge_dist)
    for one in (deep, loaded, batch):
        rows = rows_of(one)
        assert rows.place.equal(expected.place)
        assert rows.member.equal(expected.member)


def test_rows_are_forgotten_with_the_batch(batch_of) -> None:
    batch = batch_of(["NaCl"])
    rows = weakref.ref(rows_of(batch))
    kept = len(module._KEPT)
    del batch
    gc.collect()
    assert rows() is None
    assert len(module._KEPT) < kept


def test_a_batch_of_inference_mode(batch_of) -> None:
    with torch.inference_mode():
        batch = batch_of(["NaCl", "TiO2"])
        before = rows_of(batch)
        batch.edge_dist.mul_(0).add_(1)
        assert rows_of(batch).member.numel() < before.member.numel()
    assert rows_of(batch).member.numel() == 2  # outside, too


def test_batches_that_the_kernels_do_not_serve(batch_of) -> None:
    batch = batch_of(["NaCl", "TiO2"])
    for edge_dist in (batch.edge_dist.clone().requires_grad_(), batch.edge_dist.half(), batch.edge_dist.to("meta")):
        other = copy.copy(batch)
        other.edge_dist = edge_dist
        assert rows_of(other) is None
    unsorted = copy.copy(batch)
    unsorted.edge_index = batch.edge_index.flip(1)
    assert rows_of(unsorted) is None
    narrow = copy.copy(batch)
    narrow.edge_index = batch.edge_index.int()
    assert rows_of(narrow) is None
    with torch.autocast("cpu"):
        assert rows_of(batch) is None

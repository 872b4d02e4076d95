from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, SAGEConv
from torch_geometric.nn.aggr import MultiAggregation
from torch_geometric.nn.resolver import aggregation_resolver

from pyg_dim import DIMPool, record

AGGREGATIONS = {
    "mean": {}, "sum": {}, "max": {}, "min": {}, "mul": {}, "var": {}, "std": {}, "median": {},
    "softmax": {"learn": True}, "powermean": {"learn": True},
    "set2set": {"in_channels": 6, "processing_steps": 2}, "sort": {"k": 3}, "quantile": {"q": [0.25, 0.75]},
    "lstm": {"in_channels": 6, "out_channels": 5},
}  # fmt: skip


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    index = torch.tensor([0, 0, 0, 2, 2, 3])
    return torch.rand(6, 6) + 0.1, index, torch.tensor([0, 3, 3, 5, 6])


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_output_is_that_of_the_bare_aggregation(name: str) -> None:
    x, index, _ = inputs()
    bare = aggregation_resolver(name, **AGGREGATIONS[name])
    pool = DIMPool(copy.deepcopy(bare), in_channels=6)
    expected = bare(x, index, dim_size=4)
    assert pool(x, index, dim_size=4).equal(expected)
    assert pool.out_channels == expected.size(-1)
    with record(pool) as tape:
        assert pool(x, index, dim_size=4).equal(expected)
    loss = tape.loss()
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["mean", "sum", "max", "var"])
def test_ptr_equals_index(name: str) -> None:
    x, index, ptr = inputs()
    pool = DIMPool(name, in_channels=6)
    assert torch.allclose(pool(x, ptr=ptr), pool(x, index, dim_size=4))
    with record(pool) as tape:
        pool(x, ptr=ptr)
    assert tape.records[0].index.equal(index)


def test_lists_and_other_modules() -> None:
    x, index, _ = inputs()
    pool = DIMPool(["mean", "max"], in_channels=6)
    assert pool.out_channels == 12
    assert isinstance(pool.aggr, MultiAggregation)

    class Total(nn.Module):
        def forward(self, x, index=None, ptr=None, dim_size=None, dim=-2):
            return x.new_zeros(dim_size, x.size(-1)).index_add(0, index, x)

    own = DIMPool(Total(), in_channels=6)
    torch.testing.assert_close(own(x, index, dim_size=4), DIMPool("sum", in_channels=6)(x, index, dim_size=4))


def test_inside_a_convolution_and_inside_a_list() -> None:
    x, edges = torch.randn(4, 6), torch.tensor([[0, 1, 2, 3, 1], [1, 0, 1, 2, 3]])
    pool = DIMPool("max", in_channels=6)
    conv, bare = SAGEConv(6, 3, aggr=pool), SAGEConv(6, 3, aggr="max")
    bare.lin_l.load_state_dict(conv.lin_l.state_dict())
    bare.lin_r.load_state_dict(conv.lin_r.state_dict())
    assert conv(x, edges).equal(bare(x, edges))
    with record(conv) as tape:
        conv(x, edges)
    assert len(tape.records) == 1
    several = SAGEConv(6, 3, aggr=[DIMPool("mean", in_channels=6), DIMPool("std", in_channels=6)])
    with record(several) as tape:
        several(x, edges)
    assert len(tape.records) == 2


def test_head_dimensions_are_flattened() -> None:
    x, edges = torch.randn(4, 6), torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]])
    conv = GATConv(6, 5, heads=2, aggr=DIMPool("sum", in_channels=10), add_self_loops=False)
    with record(conv) as tape:
        out = conv(x, edges)
    assert out.shape == (4, 10)
    assert tape.records[0].z.shape == (4, 10)
    assert tape.loss().isfinite()


def test_isolated_recording_hands_on_without_gradient() -> None:
    x, index, _ = inputs()
    x.requires_grad_()
    pool = DIMPool("mean", in_channels=6)
    assert pool(x, index).requires_grad
    with record(pool, isolate=True):
        assert not pool(x, index).requires_grad
    with record(pool):
        assert pool(x, index).requires_grad


def test_reset_parameters_reaches_everything() -> None:
    pool = DIMPool("lstm", in_channels=6, aggr_kwargs={"in_channels": 6, "out_channels": 5})
    before = {n: p.clone() for n, p in pool.named_parameters()}
    pool.reset_parameters()
    assert all(not p.equal(before[n]) for n, p in pool.named_parameters())


def test_state_survives_deepcopy_and_a_recording_leaves_none() -> None:
    x, index, _ = inputs()
    pool = DIMPool("mean", in_channels=6)
    with record(pool):
        pool(x, index)
    twin = copy.deepcopy(pool)
    twin.load_state_dict(pool.state_dict())
    assert twin(x, index).equal(pool(x, index))


def test_full_graph_compilation_outside_a_recording() -> None:
    x, index, _ = inputs()
    pool = DIMPool("sum", in_channels=6)
    compiled = torch.compile(pool, fullgraph=True, backend="eager")
    assert compiled(x, index, dim_size=4).equal(pool(x, index, dim_size=4))


def test_repr_is_not_that_of_the_bare_aggregation() -> None:
    assert repr(DIMPool("mean", in_channels=6)) == "DIMPool(MeanAggregation(), in_channels=6)"


def test_another_width_than_stated_is_named_in_a_recording() -> None:
    pool = DIMPool("mean", in_channels=6)
    with record(pool), pytest.raises(ValueError, match="constituents of width 5 to record; it was built for 6"):
        pool(torch.randn(4, 5), torch.tensor([0, 0, 1, 1]))


def test_errors() -> None:
    with pytest.raises(ValueError, match="in_channels"):
        DIMPool("mean", in_channels=0)
    with pytest.raises(ValueError, match="Could not resolve"):
        DIMPool("average", in_channels=4)
    with pytest.raises(ValueError, match="give out_channels"):
        DIMPool(nn.Bilinear(2, 2, 2), in_channels=4)

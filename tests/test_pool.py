from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch_geometric.nn.aggr as aggr
from torch import Tensor, nn
from torch_geometric.nn import EGConv, GATConv, PNAConv, RGCNConv, SAGEConv

from pyg_dim import DIMPool, record

F = 6
DEGREES = torch.tensor([0, 2, 1, 1])


def deep_sets() -> aggr.Aggregation:
    return aggr.DeepSetsAggregation(local_nn=nn.Linear(F, 7), global_nn=nn.Linear(7, 4))


# One of every class; a class that a new release of PyG brings makes the test below it fail until it is added.
AGGREGATIONS: dict[str, Callable[[], nn.Module]] = {
    "MeanAggregation": aggr.MeanAggregation,
    "SumAggregation": aggr.SumAggregation,
    "MaxAggregation": aggr.MaxAggregation,
    "MinAggregation": aggr.MinAggregation,
    "MulAggregation": aggr.MulAggregation,
    "VarAggregation": aggr.VarAggregation,
    "StdAggregation": aggr.StdAggregation,
    "MedianAggregation": aggr.MedianAggregation,
    "SoftmaxAggregation": lambda: aggr.SoftmaxAggregation(learn=True),
    "PowerMeanAggregation": lambda: aggr.PowerMeanAggregation(learn=True),
    "MultiAggregation": lambda: aggr.MultiAggregation(["mean", "max", "std"]),
    "QuantileAggregation": lambda: aggr.QuantileAggregation([0.25, 0.75]),
    "LSTMAggregation": lambda: aggr.LSTMAggregation(F, 5),
    "GRUAggregation": lambda: aggr.GRUAggregation(F, 5),
    "Set2Set": lambda: aggr.Set2Set(F, processing_steps=2),
    "DegreeScalerAggregation": lambda: aggr.DegreeScalerAggregation(
        ["mean", "max"], ["identity", "amplification"], DEGREES, train_norm=True
    ),
    "SortAggregation": lambda: aggr.SortAggregation(k=3),
    "GraphMultisetTransformer": lambda: aggr.GraphMultisetTransformer(F, k=2, heads=2),
    "AttentionalAggregation": lambda: aggr.AttentionalAggregation(nn.Linear(F, 1), nn.Linear(F, 4)),
    "EquilibriumAggregation": lambda: aggr.EquilibriumAggregation(F, 4, [8], grad_iter=2),
    "MLPAggregation": lambda: aggr.MLPAggregation(F, 4, max_num_elements=10, hidden_channels=8, num_layers=2),
    "DeepSetsAggregation": deep_sets,
    "SetTransformerAggregation": lambda: aggr.SetTransformerAggregation(F, heads=2),
    "LCMAggregation": lambda: aggr.LCMAggregation(F, 5, project=True),
    "VariancePreservingAggregation": aggr.VariancePreservingAggregation,
    "PatchTransformerAggregation": lambda: aggr.PatchTransformerAggregation(F, 4, patch_size=2, hidden_channels=8),
}
INDEX = torch.tensor([0, 0, 0, 2, 2, 3])
PTR = torch.tensor([0, 3, 3, 5, 6])
SHUFFLED = torch.tensor([2, 0, 3, 0, 2, 0])
# Arguments of a call; "shape" is that of x. Groups 1 and 4 are empty where there are any.
CALLS = {
    "index": {"index": INDEX},
    "index and dim_size": {"index": INDEX, "dim_size": 5},
    "ptr": {"ptr": PTR},
    "index and ptr": {"index": INDEX, "ptr": PTR},
    "index, ptr and dim_size": {"index": INDEX, "ptr": PTR, "dim_size": 4},
    "unsorted index": {"index": SHUFFLED, "dim_size": 4},
    "one group": {},
    "dim 0": {"index": INDEX, "dim_size": 4, "dim": 0},
    "heads, dim 0": {"shape": (6, 3, 2), "index": INDEX, "dim_size": 4, "dim": 0},
    "batch of node features": {"shape": (2, 6, F), "index": INDEX, "dim_size": 4},
    "positive dim": {"shape": (2, 6, F), "index": INDEX, "dim_size": 4, "dim": 1},
    "max_num_elements": {"index": INDEX, "dim_size": 4, "max_num_elements": 4},
    "dim_size too small": {"index": INDEX, "dim_size": 2},
    "dim_size against ptr": {"ptr": PTR, "dim_size": 7},
    "no such dim": {"index": INDEX, "dim": 2},
    "an argument nobody has": {"index": INDEX, "no_such_argument": 1},
    "no rows": {"shape": (0, F), "index": INDEX[:0], "dim_size": 2},
}


def call(module: nn.Module, arguments: dict) -> Tensor | type[Exception]:
    """What a module returns, or the type of what it raises, from the same random numbers every time."""
    torch.manual_seed(0)
    x = torch.rand(arguments.get("shape", (6, F))) + 0.1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return module(x, **{name: value for name, value in arguments.items() if name != "shape"})
    except Exception as error:
        return type(error)


def same(a: Tensor | type[Exception], b: Tensor | type[Exception]) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=-1e30), b.nan_to_num(nan=-1e30))
    return a is b


def test_no_class_of_pyg_is_missing() -> None:
    assert set(AGGREGATIONS) == set(aggr.classes) - {"Aggregation"}


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", AGGREGATIONS)
def test_a_pool_does_what_the_bare_aggregation_does(name: str, arguments: dict) -> None:
    bare = AGGREGATIONS[name]()
    pool = DIMPool(copy.deepcopy(bare), in_channels=-1)
    expected = call(bare, arguments)
    assert same(call(pool, arguments), expected)
    assert same(call(pool, arguments), expected), "the first call alone takes the widths"
    with record(pool) as tape:
        assert same(call(pool, arguments), expected)
    if isinstance(expected, Tensor) and expected.numel():
        assert len(tape.records) == 1
        # Head and batch dimensions are flattened.
        others = list(arguments.get("shape", (6, F)))
        del others[arguments.get("dim", -2)]
        assert pool.in_channels == math.prod(others)


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_every_aggregation_trains(name: str) -> None:
    """The loss is finite and reaches every parameter that the output depends on."""
    bare = AGGREGATIONS[name]()
    pool = DIMPool(copy.deepcopy(bare), in_channels=F)
    assert pool.out_channels == pool(torch.rand(6, F), INDEX, dim_size=4).size(-1)
    x = (torch.rand(6, F) + 0.1).requires_grad_()
    bare(x, INDEX, dim_size=4).square().sum().backward()
    with record(pool) as tape:
        pool(x, INDEX, dim_size=4)
    loss = tape.loss()
    loss.backward()
    assert loss.isfinite()
    for (path, theirs), ours in zip(bare.named_parameters(), pool.aggr.parameters(), strict=True):
        if theirs.grad is not None and theirs.grad.abs().sum() > 0:
            assert ours.grad is not None, path
            assert ours.grad.isfinite().all(), path
            assert ours.grad.abs().sum() > 0, path


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_isolation_and_joint_training(name: str) -> None:
    """An isolated pool hands nothing back to its input; its own loss reaches the input all the same."""
    x = (torch.rand(6, F) + 0.1).requires_grad_()
    pool = DIMPool(AGGREGATIONS[name](), in_channels=F)
    with record(pool, isolate=True) as tape:
        assert not pool(x, INDEX, dim_size=4).requires_grad
    assert torch.autograd.grad(tape.loss(), x)[0].abs().sum() > 0
    with record(pool):
        assert pool(x, INDEX, dim_size=4).requires_grad


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_state_moves_with_the_pool(name: str) -> None:
    pool = DIMPool(AGGREGATIONS[name](), in_channels=F).eval()
    x = torch.rand(6, F) + 0.1
    with record(pool) as tape:
        expected = pool(x, INDEX, dim_size=4)
    tape.loss()
    for twin in (copy.deepcopy(pool), DIMPool(AGGREGATIONS[name](), in_channels=F).eval()):
        twin.load_state_dict(pool.state_dict())
        assert twin(x, INDEX, dim_size=4).equal(expected)
        with record(twin) as again:
            twin(x, INDEX, dim_size=4)
        seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
        assert tape.loss(generator=seeds[0]).equal(again.loss(generator=seeds[1]))
    bare = pool.unwrap()
    assert bare is pool.aggr
    assert bare(x, INDEX, dim_size=4).equal(expected)


def test_reset_parameters_reaches_everything() -> None:
    pool = DIMPool("lstm", in_channels=F, aggr_kwargs={"in_channels": F, "out_channels": 5})
    before = {n: p.clone() for n, p in pool.named_parameters()}
    pool.reset_parameters()
    assert all(not p.equal(before[n]) for n, p in pool.named_parameters())


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_full_graph_compilation_where_the_bare_aggregation_allows_it(name: str) -> None:
    arguments = {"index": INDEX, "dim_size": 4}
    bare = AGGREGATIONS[name]().eval()
    pool = DIMPool(copy.deepcopy(bare), in_channels=-1)
    call(pool, arguments)
    outcomes = []
    for module in (bare, pool):
        torch._dynamo.reset()
        outcomes.append(call(torch.compile(module, fullgraph=True, backend="eager"), arguments))
    assert same(*outcomes)
    if name in ("SumAggregation", "MeanAggregation", "SoftmaxAggregation", "MultiAggregation"):
        assert isinstance(outcomes[1], Tensor)


def test_widths_are_taken_from_the_first_call_even_after_the_optimiser_was_made() -> None:
    pool = DIMPool("mean", in_channels=-1)
    assert repr(pool) == "DIMPool(MeanAggregation(), in_channels=-1)"
    pool.reset_parameters()  # as the constructor of a convolution does
    optimiser = torch.optim.AdamW(pool.parameters())
    with record(pool) as tape:
        pool(torch.rand(6, F), INDEX)
    assert repr(pool) == "DIMPool(MeanAggregation(), in_channels=6)"
    before = [p.clone() for p in pool.parameters()]
    tape.loss().backward()
    optimiser.step()
    assert before
    assert all(not p.equal(b) for p, b in zip(pool.parameters(), before, strict=True))


def test_parameters_without_widths_load_and_follow_dtype() -> None:
    trained = DIMPool("mean", in_channels=F).double()
    fresh = DIMPool("mean", in_channels=-1).double()
    fresh.load_state_dict(trained.state_dict())
    x = torch.rand(6, F, dtype=torch.float64)
    with record(trained) as theirs, record(fresh) as ours:
        fresh(x, INDEX)
    with record(trained) as theirs:
        trained(x, INDEX)
    fresh.eval()
    losses = [t.loss(generator=torch.Generator().manual_seed(0)) for t in (theirs, ours)]
    assert losses[0].equal(losses[1])
    foreign = DIMPool("mean", in_channels=-1)
    foreign.load_state_dict(DIMPool("mean", in_channels=4).state_dict())
    for _ in range(2):  # a refusal changes nothing
        with pytest.raises(ValueError, match=r"was loaded with shape \(64, 4\), the model needs \(64, 6\)"):
            foreign(torch.rand(6, F), INDEX)


def test_lists_and_other_modules() -> None:
    x = torch.rand(6, F)
    pool = DIMPool(["mean", "max"], in_channels=F)
    assert pool.out_channels == 2 * F

    class Total(nn.Module):
        def forward(self, x, index=None, ptr=None, dim_size=None, dim=-2):
            return x.new_zeros(dim_size, x.size(-1)).index_add(0, index, x)

    own = DIMPool(Total(), in_channels=F)
    torch.testing.assert_close(own(x, INDEX, dim_size=4), DIMPool("sum", in_channels=F)(x, INDEX, dim_size=4))


def test_inside_a_convolution_and_inside_a_list() -> None:
    x, edges = torch.randn(4, F), torch.tensor([[0, 1, 2, 3, 1], [1, 0, 1, 2, 3]])
    pool = DIMPool("max", in_channels=F)
    conv, bare = SAGEConv(F, 3, aggr=pool), SAGEConv(F, 3, aggr="max")
    bare.lin_l.load_state_dict(conv.lin_l.state_dict())
    bare.lin_r.load_state_dict(conv.lin_r.state_dict())
    assert conv(x, edges).equal(bare(x, edges))
    with record(conv) as tape:
        conv(x, edges)
    assert len(tape.records) == 1
    several = SAGEConv(F, 3, aggr=[DIMPool("mean", in_channels=F), DIMPool("std", in_channels=F)])
    with record(several) as tape:
        several(x, edges)
    assert len(tape.records) == 2


def test_as_aggregators_of_pna_and_per_relation() -> None:
    x, edges = torch.randn(4, F), torch.tensor([[0, 1, 2, 3, 1], [1, 0, 1, 2, 3]])
    pools = [DIMPool("mean", in_channels=2 * F), DIMPool("max", in_channels=2 * F)]
    pna = PNAConv(F, 8, aggregators=pools, scalers=["identity", "amplification"], deg=DEGREES, towers=2)
    with record(pna) as tape:
        assert pna(x, edges).shape == (4, 8)
    assert [r.constituents.channels for r in tape.records] == [2 * F, 2 * F]
    rgcn = RGCNConv(F, 3, num_relations=3, aggr=DIMPool("mean", in_channels=F))
    with record(rgcn) as tape:
        rgcn(x, edges, torch.tensor([0, 1, 2, 1, 0]))
    assert [r.call for r in tape.records] == [0, 1, 2]
    losses = tape.losses()
    assert losses["total"].isfinite()
    assert "detail/aggr_module.level.2/js" in losses


def test_a_layer_that_takes_no_modules_says_so() -> None:
    with pytest.raises(ValueError, match="Unsupported aggregator: 'DIMPool"):
        EGConv(8, 8, aggregators=[DIMPool("mean", in_channels=8)])


def test_head_dimensions_are_flattened() -> None:
    x, edges = torch.randn(4, F), torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]])
    conv = GATConv(F, 5, heads=2, aggr=DIMPool("sum", in_channels=10), add_self_loops=False)
    with record(conv) as tape:
        out = conv(x, edges)
    assert out.shape == (4, 10)
    assert tape.records[0].z.shape == (4, 10)
    assert tape.loss().isfinite()


def test_another_width_than_stated_is_named_in_a_recording() -> None:
    pool = DIMPool("mean", in_channels=F)
    with record(pool), pytest.raises(ValueError, match="constituents of width 5 to record; it was built for 6"):
        pool(torch.randn(4, 5), torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize("critic", ["dot_product", "bilinear"])
@pytest.mark.parametrize("estimator", ["jensen_shannon", "info_nce"])
def test_every_classifier_trains_the_aggregation(critic: str, estimator: str) -> None:
    pool = DIMPool(deep_sets(), in_channels=F, critic=critic, estimator=estimator)
    with record(pool) as tape:
        pool(torch.rand(6, F), INDEX, dim_size=4)
    losses = tape.losses()
    losses["total"].backward()
    tag = {"jensen_shannon": "js", "info_nce": "nce"}[estimator]
    assert f"{tag}/local" in losses
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pool.aggr.parameters())


def test_errors() -> None:
    with pytest.raises(ValueError, match="in_channels"):
        DIMPool("mean", in_channels=0)
    with pytest.raises(ValueError, match="Could not resolve"):
        DIMPool("average", in_channels=4)
    with pytest.raises(ValueError, match="give out_channels"):
        DIMPool(nn.Bilinear(2, 2, 2), in_channels=4)


def test_a_sum_over_many_rows_gives_a_finite_loss() -> None:
    """Noise is off where a level is put into a model whose scale is not ours to choose."""
    x, index = torch.randn(4000, 8).abs() * 10, torch.arange(4000) % 4
    pool = DIMPool("sum", in_channels=8)
    with record(pool) as tape:
        pool(x, index)
    loss = tape.loss()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in pool.parameters())

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing, models
from torch_geometric.nn import conv as layers
from torch_geometric.nn.aggr import MeanAggregation, SumAggregation

from pyg_dim import DIMPool, record, unwrap, wrap
from pyg_dim.wrap import LayerLevel

N, E, C = 10, 40, 8
GENERATOR = torch.Generator().manual_seed(0)
EDGES = torch.randint(0, N, (2, E), generator=GENERATOR)
X = torch.randn(N, C, generator=GENERATOR)
EDGE_ATTR = torch.randn(E, 4, generator=GENERATOR)
EDGE_TYPE = torch.randint(0, 3, (E,), generator=GENERATOR)
BATCH = torch.arange(N) // 5
DEGREES = torch.bincount(torch.bincount(EDGES[1], minlength=N))


class Own(MessagePassing):
    """A layer as users write them: the message holds both ends and the edge."""

    def __init__(self) -> None:
        super().__init__(aggr="max")
        self.linear = nn.Linear(2 * C + 4, C)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        return x + self.propagate(edge_index, x=x, edge_attr=edge_attr)

    def message(self, x_i: Tensor, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        return self.linear(torch.cat([x_i, x_j, edge_attr], dim=-1))


class Backwards(MessagePassing):
    """Messages run from targets to sources."""

    def __init__(self) -> None:
        super().__init__(aggr="mean", flow="target_to_source")
        self.linear = nn.Linear(C, C)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.linear(self.propagate(edge_index, x=x))


class Heads(MessagePassing):
    """Node features and outputs of the shape [nodes, heads, features]."""

    def __init__(self) -> None:
        super().__init__(aggr="sum", node_dim=0)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)


def pna() -> MessagePassing:
    return layers.PNAConv(C, C, ["mean", "max"], ["identity", "amplification"], DEGREES, edge_dim=4, towers=2)


def cfconv() -> MessagePassing:
    return models.schnet.CFConv(C, C, C, nn.Linear(4, C), cutoff=3.0)


WEIGHT = EDGE_ATTR[:, 0].abs()
# Layer, further arguments after (x, edge_index), width of a constituent, number of constituents.
LOOPS = int((EDGES[0] != EDGES[1]).sum()) + N
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple, int, int]] = {
    "GCN": (lambda: layers.GCNConv(C, C), (WEIGHT,), C, LOOPS),
    "SAGE": (lambda: layers.SAGEConv(C, C), (), C, E),
    "GAT": (lambda: layers.GATConv(C, 4, heads=2, edge_dim=4), (EDGE_ATTR,), C + 4, LOOPS),
    "GATv2": (lambda: layers.GATv2Conv(C, 4, heads=2, edge_dim=4), (EDGE_ATTR,), C + 4, LOOPS),
    "GIN": (lambda: layers.GINConv(nn.Linear(C, C)), (), C, E),
    "GINE": (lambda: layers.GINEConv(nn.Linear(C, C), edge_dim=4), (EDGE_ATTR,), C + 4, E),
    "RGCN": (lambda: layers.RGCNConv(C, C, 3), (EDGE_TYPE,), C, E),
    "CG": (lambda: layers.CGConv(C, 4), (EDGE_ATTR,), C + 4, E),
    "PNA": (pna, (EDGE_ATTR,), 2 * C + 4, E),
    "CFConv": (cfconv, (WEIGHT, EDGE_ATTR), C + 4, E),
    "Transformer": (lambda: layers.TransformerConv(C, 4, heads=2, edge_dim=4), (EDGE_ATTR,), 2 * C + 4, E),
    "ResGated": (lambda: layers.ResGatedGraphConv(C, C, edge_dim=4), (EDGE_ATTR,), 2 * C + 4, E),
    "EG": (lambda: layers.EGConv(C, C, num_heads=4), (), C, LOOPS),
    "TAG": (lambda: layers.TAGConv(C, C, K=2), (), C, 2 * E),
    "own": (Own, (EDGE_ATTR,), C + 4, E),
    "backwards": (Backwards, (), C, E),
}


class Residual(nn.Module):
    """Two layers with skip connections around them, then a readout: the hard case for isolation."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(C, C)
        self.layers = nn.ModuleList(layer() for _ in range(2))
        self.between = nn.Linear(C, C)
        self.readout = SumAggregation()
        self.head = nn.Linear(C, 1)

    def forward(self, x: Tensor, edge_index: Tensor, *rest: Tensor) -> Tensor:
        x = self.first(x)
        before = x
        x = before + self.layers[0](x.relu(), edge_index, *rest)
        x = x + self.between(x)
        x = x + before + self.layers[1](x, edge_index, *rest)
        return self.head(self.readout(x, BATCH, dim_size=2))


@pytest.fixture(params=LAYERS)
def case(request) -> tuple[nn.Module, tuple, int, int]:
    layer, rest, width, count = LAYERS[request.param]
    torch.manual_seed(0)
    return Residual(layer), (X, EDGES, *rest), width, count


def test_outputs_stay_what_they_are(case) -> None:
    model, inputs, width, count = case
    expected = model(*inputs)
    wrap(model, *inputs)
    assert model(*inputs).equal(expected)
    for isolate in (False, True):
        with record(model, isolate=isolate) as tape:
            assert model(*inputs).equal(expected)
    names = ["layers.0.dim_level", "layers.1.dim_level", "readout.dim_level"]
    assert [r.name for r in tape.records] == names
    layer, _, readout = tape.records
    assert (layer.constituents.channels, len(layer.constituents)) == (width, count)
    assert (readout.constituents.channels, len(readout.constituents)) == (C, N)


def test_the_loss_is_finite_and_trains_the_layers(case) -> None:
    model, inputs, _, _ = case
    wrap(model, *inputs)
    with record(model) as tape:
        model(*inputs)
    losses = tape.losses(kinds=("other", "unconnected"))
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if "head" not in n)
    assert all(any(p.grad.abs().sum() > 0 for p in layer.parameters()) for layer in model.layers)


def test_isolation_leaks_nothing_through_skip_connections(case) -> None:
    model, inputs, _, _ = case
    wrap(model, *inputs, noise="none")
    with record(model, isolate=True) as tape:
        model(*inputs)
    own = [
        [model.first, model.layers[0]],  # what the representation of the first level is computed from
        [model.between, model.layers[1]],
        [],
    ]
    for level, record_ in enumerate(tape.records):
        model.zero_grad()
        loss = record_.level.loss(record_, generator=torch.Generator().manual_seed(0)).loss
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        for other, modules in enumerate(own):
            inside = [p for m in modules for n, p in m.named_parameters() if "dim_level" not in n]
            reached = [p for p in inside if p.grad is not None and p.grad.abs().sum() > 0]
            assert bool(reached) == (other == level and bool(inside)), (level, other)


def test_without_isolation_the_last_loss_reaches_the_first_layer(case) -> None:
    model, inputs, _, _ = case
    wrap(model, *inputs)
    with record(model) as tape:
        model(*inputs)
    tape.records[-1].level.loss(tape.records[-1]).loss.backward()
    assert model.first.weight.grad.abs().sum() > 0


def test_unwrap_gives_the_model_back(case) -> None:
    model, inputs, _, _ = case
    keys, expected = list(model.state_dict()), model(*inputs)
    wrap(model, *inputs)
    twin = copy.deepcopy(model)
    assert unwrap(model) is model
    assert list(model.state_dict()) == keys
    assert not any(
        hooks
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and name.startswith(("_forward", "_propagate", "_edge_update"))
    )
    assert model(*inputs).equal(expected)
    # The copy made before has levels and hooks of its own.
    with record(twin) as tape:
        assert twin(*inputs).equal(expected)
    assert len(tape.records) == 3
    assert tape.records[0].level is twin.layers[0].dim_level
    assert list(unwrap(twin).state_dict()) == keys


def test_state_loads_into_a_model_that_was_just_wrapped(case) -> None:
    model, inputs, _, _ = case
    fresh = copy.deepcopy(model)
    wrap(model, *inputs)
    wrap(fresh).load_state_dict(model.state_dict())
    losses = []
    for each in (model, fresh):
        each.eval()
        with record(each) as tape:
            each(*inputs)
        losses.append(tape.loss(generator=torch.Generator().manual_seed(0)))
    assert losses[0].equal(losses[1])


def test_constituents_hold_the_sender_and_never_the_receiver() -> None:
    """Features of the receiver must not show in what it receives, or the critic would have the answer."""
    for name, (layer, rest, _, _) in LAYERS.items():
        if name in ("TAG",):  # the second hop brings the receiver's own features back to it, as messages do
            continue
        model = wrap(layer(), X, EDGES, *rest)
        seen = []
        for shift in (0.0, 1.0):
            x = X.clone()
            x[3] += shift
            with record(model) as tape:
                model(x, EDGES, *rest)
            record_ = tape.records[0]
            to_three = record_.index == 3
            senders = record_.constituents.parts[0][1]
            seen.append(record_.constituents.dense()[to_three & (senders != 3)])
        assert seen[0].numel()
        assert seen[0].equal(seen[1]), name


def messages(x: Tensor, edges: Tensor, edge_attr: Tensor | None, target: int) -> list[list[float]]:
    """What a node receives, edge by edge: sender's features, then those of the edge."""
    found = []
    for e, (source, receiver) in enumerate(edges.T.tolist()):
        if receiver == target:
            found.append(x[source].flatten().tolist() + ([] if edge_attr is None else edge_attr[e].tolist()))
    return sorted(found)


def received(record_, target: int) -> list[list[float]]:
    return sorted(record_.constituents.dense()[record_.index == target].tolist())


def test_every_node_has_the_messages_that_run_to_it() -> None:
    heads = X.view(N, 2, C // 2).clone()
    cases = {
        "dense": (layers.GINEConv(nn.Linear(C, C), edge_dim=4), (X, EDGES, EDGE_ATTR), X, EDGES, EDGE_ATTR),
        "backwards": (Backwards(), (X, EDGES), X, EDGES.flip(0), None),
        "heads": (Heads(), (heads, EDGES), heads, EDGES, None),
        "two kinds": (
            layers.SAGEConv((C, C), C), ((X, X[:4] + 1), torch.stack([EDGES[0], EDGES[1] % 4])), X,
            torch.stack([EDGES[0], EDGES[1] % 4]), None,
        ),
    }  # fmt: skip
    for name, (model, inputs, x, edges, edge_attr) in cases.items():
        wrap(model, *inputs)
        with record(model, isolate=True) as tape:
            out = model(*inputs)
        assert out.equal(unwrap(model)(*inputs)), name
        for target in range(out.size(0)):
            assert received(tape.records[0], target) == messages(x, edges, edge_attr, target), (name, target)


def test_a_sparse_adjacency_runs_from_column_to_row() -> None:
    class Fresh(layers.SAGEConv):  # see below
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse tensors are in beta state
        adjacency = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(E), (N, N)).coalesce().to_sparse_csr()
    model = wrap(Fresh(C, C), X, adjacency)
    with record(model) as tape:
        model(X, adjacency)
    once = torch.unique(EDGES, dim=1)
    for target in range(N):
        assert received(tape.records[0], target) == messages(X, once, None, target)


def test_edge_features_of_other_edges_are_left_out() -> None:
    """PDNConv moves self-loops to the end and keeps the features for itself."""
    loops = torch.arange(N).repeat(2, 1)
    edges, edge_attr = torch.cat([loops, EDGES], dim=1), torch.randn(N + E, 4)
    model = wrap(layers.PDNConv(C, C, edge_dim=4, hidden_channels=4), X, edges, edge_attr)
    with record(model) as tape:
        model(X, edges, edge_attr)
    assert tape.records[0].constituents.channels == C


def test_widths_come_from_the_first_call_and_the_optimiser_may_be_older() -> None:
    model = wrap(Residual(lambda: layers.SAGEConv(C, C)))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    with record(model) as tape:
        model(X, EDGES)
    level = model.layers[0].dim_level
    before = level.critic.c_hidden.weight.clone()
    tape.loss().backward()
    optimiser.step()
    assert not before.equal(level.critic.c_hidden.weight)


def test_levels_take_device_and_type_of_the_model() -> None:
    model = wrap(Residual(lambda: layers.SAGEConv(C, C)).double(), X.double(), EDGES)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_the_first_call_leaves_no_trace() -> None:
    model = nn.ModuleList([models.GIN(C, C, 2, norm="batch_norm", dropout=0.5), nn.Dropout()])
    model[1].eval()
    inner = model[0]
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    wrap(inner, X, EDGES)
    assert inner.training
    assert inner.convs[0].dim_level.critic.training
    assert not model[1].training
    assert all(value.equal(buffers[name]) for name, value in model.named_buffers())


def test_what_the_first_call_does_not_reach_gets_no_level() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = MeanAggregation(), MeanAggregation()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x, BATCH)

    assert [n for n, m in wrap(Spare(), X).named_modules() if n.endswith("dim_level")] == ["used.dim_level"]
    with pytest.raises(ValueError, match="uninitialized parameter"):
        wrap(Spare()).state_dict()


def test_whole_models_of_pyg() -> None:
    graph = EDGES, (X[EDGES[0], :3] - X[EDGES[1], :3]).norm(dim=1)
    cases = {
        "GIN": (models.GIN(C, C, 3), (X, EDGES)),
        "GPS": (layers.GPSConv(C, layers.GINConv(nn.Linear(C, C)), heads=2), (X, EDGES, BATCH)),
        "SchNet": (
            models.SchNet(C, C, 2, 5, interaction_graph=lambda pos, batch: graph),
            (torch.randint(1, 9, (N,)), X[:, :3], BATCH),
        ),
    }
    counts = {"GIN": 3, "GPS": 1, "SchNet": 3}
    for name, (model, inputs) in cases.items():
        expected = model.eval()(*inputs)
        wrap(model, *inputs)
        with record(model) as tape:
            assert model(*inputs).equal(expected)
        assert len(tape.records) == counts[name], name
        assert tape.loss().isfinite()


def test_attention_weights_beside_the_output_are_kept() -> None:
    model = layers.GATConv(C, 4, heads=2)
    expected = model(X, EDGES, return_attention_weights=True)
    wrap(model, X, EDGES)
    with record(model, isolate=True):
        out, (edges, weights) = model(X, EDGES, return_attention_weights=True)
    assert out.equal(expected[0])
    assert not out.requires_grad
    assert weights.equal(expected[1][1])
    assert edges.equal(expected[1][0])


def test_sparse_adjacency_and_two_kinds_of_nodes() -> None:
    # PyG makes one propagate for each class, as its first instance needs it: without the fused path where that was
    # given an aggregation module, as other tests do.
    class Fresh(layers.SAGEConv):
        pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse tensors are in beta state
        adjacency = torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(E), (N, N)).to_sparse_csr()
    model = Fresh(C, C)
    expected = model(X, adjacency)
    wrap(model, X, adjacency)
    with record(model) as tape:
        assert model(X, adjacency).equal(expected)
    assert len(tape.records[0].constituents) == adjacency.values().numel()
    targets = torch.stack([EDGES[0], EDGES[1] % 4])
    bipartite = layers.SAGEConv((C, C), C)
    wrap(bipartite, (X, X[:4]), targets)
    with record(bipartite) as tape:
        assert bipartite((X, X[:4]), targets).shape == (4, C)
    assert tape.loss().isfinite()


def test_compiled_outside_a_recording() -> None:
    model = layers.SAGEConv(C, C)
    wrap(model, X, EDGES)
    compiled = torch.compile(model, backend="eager")
    assert compiled(X, EDGES).equal(model(X, EDGES))


def test_layers_that_are_not_one_step_say_so_and_stay_as_they_were() -> None:
    edges = torch.stack([EDGES[0], EDGES[1] % 4])
    hyper = layers.HypergraphConv(C, C)
    keys = list(hyper.state_dict())
    with pytest.raises(ValueError, match=r"HypergraphConv cannot be wrapped: it sends messages to \[4, 10\] groups"):
        wrap(hyper, X, edges)
    assert list(hyper.state_dict()) == keys
    assert hyper(X, edges).shape == (N, C)

    class Degree(MessagePassing):
        def forward(self, edge_index: Tensor, weight: Tensor) -> Tensor:
            return self.propagate(edge_index, weight=weight, size=(N, N))

        def message(self, weight: Tensor) -> Tensor:
            return weight[:, None]

    with pytest.raises(ValueError, match="neither features of the sender"):
        wrap(Degree(), EDGES, WEIGHT)


def test_an_error_in_the_model_does_not_stay_behind() -> None:
    model = wrap(Own(), X, EDGES, EDGE_ATTR)
    with record(model), pytest.raises(RuntimeError):
        model(X, EDGES, EDGE_ATTR[:, :2])
    copy.deepcopy(model)  # tensors of the broken call are gone
    assert isinstance(model.dim_level, LayerLevel)
    with record(model) as tape:
        model(X, EDGES, EDGE_ATTR)
    assert len(tape.records) == 1


def test_what_has_a_level_is_left_alone_and_nothing_to_wrap_is_an_error() -> None:
    with pytest.raises(ValueError, match="global_mean_pool"):
        wrap(nn.Linear(2, 2))
    model = wrap(layers.SAGEConv(C, C), X, EDGES)
    with pytest.raises(ValueError, match="already; unwrap"):
        wrap(model)


def test_a_layer_that_returns_something_else_says_so() -> None:
    class Named(layers.SAGEConv):
        def forward(self, x: Tensor, edge_index: Tensor) -> dict[str, Tensor]:
            return {"site": super().forward(x, edge_index)}

    with pytest.raises(ValueError, match=r"Named cannot be wrapped: it returns a dict.*one by one"):
        wrap(Named(C, C), X, EDGES)


def test_unwrap_reaches_pools_that_are_shared_nested_or_in_a_list() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = DIMPool(DIMPool("mean", in_channels=C), in_channels=C)
            self.conv = layers.SAGEConv(C, C, aggr=[DIMPool("mean", in_channels=C), "max"])

    model = unwrap(Shared())
    assert not any(isinstance(m, DIMPool) for m in model.modules())
    assert model.a is model.b
    assert model.conv.aggr == ["MeanAggregation()", "MaxAggregation()"]


def test_unwrap_takes_pools_out_too() -> None:
    conv = layers.SAGEConv(C, C, aggr=DIMPool("max", in_channels=C))
    expected = conv(X, EDGES)
    assert unwrap(conv) is conv
    assert conv.aggr == "MaxAggregation()"
    assert not any(isinstance(m, DIMPool) for m in conv.modules())
    assert conv(X, EDGES).equal(expected)
    assert isinstance(unwrap(DIMPool("mean", in_channels=3)), MeanAggregation)

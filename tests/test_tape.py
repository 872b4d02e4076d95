from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GATv2Conv, SAGEConv

from pyg_dim import DIMPool, Level, record, wrap
from pyg_dim.tape import active_tape


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = SAGEConv(4, 8, aggr=DIMPool("mean", in_channels=4, noise="conditional"))
        self.pool = DIMPool("sum", in_channels=8, noise="learned")

    def forward(self, batch):
        x = self.conv(batch.x, batch.edge_index).relu()
        return self.pool(x, batch.batch, dim_size=batch.num_graphs)


def graphs(count: int = 5) -> Batch:
    """Rings with random features."""
    data = []
    for n in range(3, 3 + count):
        ring = torch.arange(n)
        edges = torch.stack([torch.cat([ring, (ring + 1) % n]), torch.cat([(ring + 1) % n, ring])])
        data.append(Data(x=torch.randn(n, 4), edge_index=edges))
    return Batch.from_data_list(data)


def test_levels_are_recorded_in_order_with_their_scope() -> None:
    net, batch = Net(), graphs()
    with record(net, batch) as tape:
        out = net(batch)
    conv, pool = tape.records
    assert conv.name == "conv.aggr_module.level"
    assert (conv.scope, pool.scope) == ("site", "crystal")
    assert pool.z is not None
    assert pool.z.equal(out)
    assert conv.crystal.equal(batch.batch)


def test_the_loss_is_a_scalar_that_trains_the_model() -> None:
    net, batch = Net(), graphs()
    with record(net, batch) as tape:
        net(batch)
    losses = tape.losses()
    assert set(losses) >= {"total", "js/local", "js/global", "kl/local", "kl/global"}
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    losses["total"].backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    # What follows the last convolution's aggregation reaches z of the readout.
    assert {n for n, _ in net.named_parameters()} == reached


def test_total_is_the_weighted_sum() -> None:
    net, batch = Net().eval(), graphs()
    with record(net, batch) as tape:
        net(batch)
    losses = tape.losses(alpha=2.0, beta=0.5, generator=torch.Generator().manual_seed(0))
    expected = 2.0 * (losses["js/local"] + losses["js/global"]) + 0.5 * (losses["kl/local"] + losses["kl/global"])
    torch.testing.assert_close(losses["total"].detach(), expected)


def test_outside_a_recording_there_is_no_state() -> None:
    net, batch = Net(), graphs()
    assert active_tape() is None
    net(batch)
    with record(net, batch) as tape:
        pass
    net(batch)
    assert tape.records == []
    assert active_tape() is None


def test_recordings_nest_and_an_error_ends_one() -> None:
    net, batch = Net(), graphs()
    with record(net, batch) as outer:
        with record(net, batch) as inner:
            net(batch)
        net(batch)
    assert (len(outer.records), len(inner.records)) == (2, 2)
    with pytest.raises(RuntimeError, match="boom"), record(net):
        raise RuntimeError("boom")
    assert active_tape() is None


def test_levels_of_other_models_are_not_recorded() -> None:
    net, stranger, batch = Net(), Net(), graphs()
    with record(net, batch) as tape:
        stranger(batch)
    assert tape.records == []


def test_calls_of_one_level_are_counted() -> None:
    net, batch = Net(), graphs()
    with record(net, batch) as tape:
        net(batch)
        net(batch)
    assert [r.key for r in tape.records][2:] == [("conv.aggr_module.level", 1), ("pool.level", 1)]
    assert "detail/pool.level.1/js" in tape.losses()


def test_isolation_cuts_at_the_exit_of_a_level() -> None:
    net, batch = Net(), graphs()
    with record(net, batch, isolate=True) as tape:
        net(batch)
    conv, pool = tape.records
    assert conv.level.loss(conv).loss.requires_grad
    # Mean aggregation of the input has no parameter of its own before the level; those after it belong to the next.
    pool.level.loss(pool).loss.backward()
    assert net.conv.lin_l.weight.grad is not None
    assert all(p.grad is None for p in net.conv.aggr_module.parameters())


def test_without_a_batch_groups_count_by_themselves() -> None:
    net, batch = Net(), graphs()
    with record(net) as tape:
        net(batch)
    assert all(r.crystal is None for r in tape.records)
    assert tape.loss().isfinite()


def test_one_graph_other_means_other_groups() -> None:
    net, batch = Net(), graphs(1)
    with record(net, batch) as tape:
        net(batch)
    losses = tape.losses()
    assert losses["detail/conv.aggr_module.level/other/coverage"] == 1
    assert losses["detail/pool.level/other/coverage"] == 0
    assert losses["js/global"] == 0
    losses["total"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


def test_another_batch_than_that_of_the_pass() -> None:
    level, batch = Level(3, 2, scope="crystal"), graphs()
    with record(level, batch), pytest.raises(ValueError, match="given 4 groups where the batch has 5"):
        level(torch.randn(4, 3), constituents=torch.randn(9, 2), index=torch.randint(4, (9,)))


def test_a_batch_that_is_not_that_of_the_pass_is_found_out() -> None:
    net = Net()
    with record(net, graphs(2)) as tape:
        net(graphs(5))
    with pytest.raises(ValueError, match=r"no level has as many groups as the recorded batch .*\(7, 2\)"):
        tape.loss()
    for wrong in ([graphs(2)], graphs(2).batch):
        with pytest.raises(ValueError, match=f"not a {type(wrong).__name__}"), record(net, wrong):
            pass


def test_one_kind_may_be_a_string() -> None:
    net, batch = Net(), graphs()
    with record(net, batch) as tape:
        net(batch)
    assert tape.losses(kinds="other")["total"].isfinite()


def test_errors_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"wrap\(model\), or put DIMPool"):
        record(nn.Linear(2, 2)).__enter__()
    net = Net()
    with record(net) as tape:
        pass
    with pytest.raises(ValueError, match="nothing was recorded"):
        tape.loss()


def test_evaluation_has_no_noise_and_a_seed_fixes_the_loss() -> None:
    net, batch = Net().eval(), graphs()

    def loss(seed: int) -> torch.Tensor:
        with record(net, batch) as tape:
            net(batch)
        return tape.loss(generator=torch.Generator().manual_seed(seed))

    torch.testing.assert_close(loss(1), loss(1), rtol=0, atol=0)
    assert loss(1) != loss(2)


def test_a_level_without_noise_has_no_kl() -> None:
    level = Level(3, 2, noise="none")
    with record(level) as tape:
        level(torch.randn(4, 3), constituents=torch.randn(9, 2), index=torch.randint(4, (9,)))
    assert not any(name.startswith("kl") for name in tape.losses())


def test_kinds_that_no_level_has_are_an_error_and_not_a_perfect_loss() -> None:
    net, batch = Net(), graphs()
    with record(net, batch) as tape:
        net(batch)
    with pytest.raises(ValueError, match=r"no level has false samples of the kind unconnected: conv.aggr_module.level"):
        tape.losses(kinds=("unconnected",))
    assert tape.losses(kinds=("other", "unconnected"))["total"].isfinite()


def test_a_loss_asked_for_outside_of_autocast() -> None:
    net, batch = Net(), graphs()
    attention = wrap(GATv2Conv(4, 8), batch.x, batch.edge_index)  # z in 32 bits, constituents in 16
    with torch.autocast("cpu", dtype=torch.bfloat16), record(attention, batch) as mixed:
        attention(batch.x, batch.edge_index)
    assert mixed.loss().isfinite()
    with torch.autocast("cpu", dtype=torch.bfloat16), record(net, batch) as tape:
        net(batch)
        tape.records[-1].level(
            torch.randn(5, 8, dtype=torch.bfloat16), constituents=torch.randn(9, 8), index=torch.randint(5, (9,))
        )
        inside = tape.loss()
    tape.loss().backward()
    assert inside.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters())

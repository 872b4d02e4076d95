from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv
from torch_geometric.nn.aggr import MeanAggregation

from pyg_dim import Level, record, wrap
from pyg_dim.models import SiteNet
from pyg_dim.objectives.deep_infomax import DEFAULT_KINDS, KINDS, DeepInfoMax, false_samples, frozen_buffers
from pyg_dim.tape import Tape

SMALL = {"site_channels": 8, "pair_channels": 8, "attention_hidden": [8], "value_hidden": [8], "local_channels": 8,
         "pre_pool": [8], "post_pool": [8, 8]}  # fmt: skip
NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "CaF2"]


def encoder() -> SiteNet:
    return SiteNet(**SMALL).double()


class NormedNet(nn.Module):
    """Batch norm and dropout before one crystal level, to see in which mode a corrupted pass runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(9, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.level = Level(6, 6, scope="crystal")
        self.modes: list[bool] = []

    def forward(self, batch):
        self.modes.append(self.training)
        x = self.dropout(self.norm(self.linear(batch.x)))
        z = x.new_zeros(batch.num_graphs, 6).index_add(0, batch.batch, x)
        return self.level(z, constituents=x, index=batch.batch)


def test_losses_of_every_kind_and_level(batch_of, generator) -> None:
    losses = DeepInfoMax(encoder())(batch_of(NAMES), generator)
    assert set(losses) >= {"total", "js/local", "js/global", "kl/local", "kl/global"}
    kinds = {"local_level": {"other", "composition", "polymorph"}, "global_level": set(DEFAULT_KINDS)}
    for level, expected in kinds.items():
        names = [n.split("/")[2] for n in losses if n.startswith(f"detail/{level}/") and n.endswith("/coverage")]
        assert set(names) == {*expected, "js"}
    assert all(v.ndim == 0 and v.isfinite() for v in losses.values())
    assert not any(v.requires_grad for n, v in losses.items() if n != "total")


@pytest.mark.parametrize("kinds", [[k] for k in DEFAULT_KINDS] + [["composition", "permutation"]], ids=str)
def test_every_kind_alone_trains(batch_of, generator, kinds: list[str]) -> None:
    objective = DeepInfoMax(encoder(), kinds=kinds)
    losses = objective(batch_of(NAMES), generator)
    losses["total"].backward()
    assert losses["js/global"] > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())


def test_isolation(batch_of, generator) -> None:
    """The global loss gives no gradient to any local parameter; without isolation it does."""
    for isolate in (True, False):
        model = encoder()
        with record(model, batch_of(NAMES), isolate=isolate) as tape:
            model(batch_of(NAMES))
        crystal = tape.records[1]
        loss = crystal.level.loss(crystal, generator=generator)
        (loss.loss + loss.kl).backward()
        touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert any(n.startswith("local.") for n in touched) != isolate
        assert any(n.startswith("pre_pool.") for n in touched)
        assert not any(n.startswith("local_level.") for n in touched)


def test_training_lowers_both_levels(batch_of) -> None:
    objective = DeepInfoMax(encoder())
    batch = batch_of(NAMES)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    generator = torch.Generator()

    def validate() -> dict[str, torch.Tensor]:
        objective.eval()
        with torch.no_grad():
            losses = objective(batch, generator.manual_seed(0))
        objective.train()
        return losses

    before = validate()
    for _ in range(60):
        optimiser.zero_grad()
        objective(batch)["total"].backward()
        optimiser.step()
    after = validate()
    assert after["js/local"] < before["js/local"]
    assert after["js/global"] < before["js/global"]


def test_a_corrupted_pass_leaves_running_statistics_alone(batch_of, generator) -> None:
    torch.manual_seed(1)
    net, batch = NormedNet().double(), batch_of(NAMES)
    alone = NormedNet().double()
    alone.load_state_dict(net.state_dict())
    alone(batch)
    DeepInfoMax(net)(batch, generator)["total"].backward()
    for name, buffer in alone.named_buffers():
        assert buffer.equal(dict(net.named_buffers())[name]), name
    assert net.norm.num_batches_tracked == 1


@pytest.mark.parametrize("training", [True, False])
def test_every_pass_runs_in_the_mode_of_the_true_one(batch_of, generator, training: bool) -> None:
    net = NormedNet().double().train(training)
    DeepInfoMax(net)(batch_of(NAMES), generator)
    assert net.modes == [training] * 3
    assert net.training is training


def test_a_corrupted_pass_normalises_with_its_own_batch(batch_of, generator) -> None:
    """In training mode the constituents of a corrupted pass have the statistics of that pass, not of the true one."""
    net, batch = NormedNet().double(), batch_of(NAMES)
    net.dropout.p = 0.0
    objective = DeepInfoMax(net, kinds=["composition"])
    corruption = objective.corruptions(batch, generator)[0]
    with torch.no_grad(), frozen_buffers(net), record(net, corruption.batch) as tape:
        net(corruption.batch)
        assert net.norm.num_batches_tracked == 1
    assert net.norm.num_batches_tracked == 0
    torch.testing.assert_close(tape.records[0].constituents.dense().mean(0), torch.zeros(6, dtype=torch.float64))


def test_only_the_true_pass_has_a_gradient(batch_of, generator) -> None:
    class Watched(NormedNet):
        def forward(self, batch):
            out = super().forward(batch)
            grads.append(out.requires_grad)
            return out

    grads: list[bool] = []
    DeepInfoMax(Watched().double(), isolate=False)(batch_of(NAMES), generator)
    assert grads == [True, False, False]


def test_a_seed_fixes_the_loss(batch_of) -> None:
    objective, batch = DeepInfoMax(encoder()).eval(), batch_of(NAMES)
    losses = [objective(batch, torch.Generator().manual_seed(s))["total"] for s in (1, 1, 2)]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize(
    "names", [["CaTiO3"], ["Si"], ["Cu", "Cu"], ["Si", "Cu", "Si"], ["Cu", "NaCl", "CaF2", "CaTiO3", "TiO2"]], ids=str
)
def test_awkward_batches_are_handled_and_reported(batch_of, generator, names: list[str]) -> None:
    objective = DeepInfoMax(encoder())
    losses = objective(batch_of(names), generator)
    losses["total"].backward()
    assert all(v.isfinite() for v in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.parameters())
    if len(set(names)) == 1 and names[0] in ("Cu", "Si"):
        assert losses["detail/global_level/permutation/coverage"] == 0
        assert losses["detail/global_level/composition/coverage"] == 0
    if len(names) == 1:
        assert losses["detail/local_level/polymorph/coverage"] == 0
        assert losses["js/local"] == losses["js/local/coverage"] == 0
        assert "detail/local_level/other" not in losses


def test_true_constituents_are_shared_not_copied(batch_of, generator) -> None:
    objective, batch = DeepInfoMax(encoder()), batch_of(NAMES)
    with record(objective.encoder, batch) as tape:
        objective.encoder(batch)
    corruption = objective.corruptions(batch, generator)[0]
    with record(objective.encoder, corruption.batch) as corrupted:
        objective.encoder(corruption.batch)
    samples = false_samples(tape, corrupted, corruption)[("local_level", 0)]
    assert samples[0].constituents is samples[1].constituents


def test_passes_that_do_not_line_up_name_the_level(batch_of, generator) -> None:
    objective, batch = DeepInfoMax(encoder()), batch_of(NAMES)
    with record(objective.encoder, batch) as tape:
        objective.encoder(batch)
    corruption = objective.corruptions(batch, generator)[0]
    with pytest.raises(ValueError, match=r"'local_level'.*no counterpart"):
        false_samples(tape, Tape({}, batch), corruption)
    with record(objective.encoder, batch_of(["NaCl"])) as shorter:
        objective.encoder(batch_of(["NaCl"]))
    with pytest.raises(ValueError, match=r"'local_level'.*corrupted pass"):
        false_samples(tape, shorter, corruption)


def test_arguments() -> None:
    with pytest.raises(ValueError, match="unknown kinds"):
        DeepInfoMax(encoder(), kinds=["rotation"])
    with pytest.raises(ValueError, match="at least one"):
        DeepInfoMax(encoder(), kinds=[])
    with pytest.raises(ValueError, match="matched, any"):
        DeepInfoMax(encoder(), donors="best")
    with pytest.raises(ValueError, match="negative"):
        DeepInfoMax(encoder(), beta=-1)


class Wrapped(nn.Module):
    """A graph convolution that adds self-loops, so that its messages are not the edges of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GCNConv(9, 6)
        self.pool = MeanAggregation()

    def forward(self, batch):
        return self.pool(self.conv(batch.x, batch.edge_index).tanh(), batch.batch, dim_size=batch.num_graphs)


def test_a_wrapped_model_takes_every_kind(batch_of, generator) -> None:
    batch = batch_of(NAMES)
    model = wrap(Wrapped().double(), batch)
    losses = DeepInfoMax(model, kinds=KINDS)(batch, generator)
    losses["total"].backward()
    names = {n.removeprefix("detail/") for n in losses if n.endswith("/coverage") and n.startswith("detail/")}
    conv = {f"conv.dim_level/{k}/coverage" for k in ("js", "other", "composition", "polymorph", "unconnected")}
    pool = {f"pool.dim_level/{k}/coverage" for k in ("js", *DEFAULT_KINDS)}
    assert names == conv | pool
    assert all(value.isfinite() for value in losses.values())
    assert model.conv.lin.weight.grad.abs().sum() > 0


def test_messages_equal_by_chance_are_masked_where_they_are_not_the_edges(batch_of, generator) -> None:
    """Without distances a message is a species: one that the neighbourhood holds anyway is no false sample."""
    batch = batch_of(["NaCl", "ZnS", "CaF2", "CaF2"])
    model = wrap(Wrapped().double(), batch)
    with record(model, batch) as true:
        model(batch)
    for corruption in DeepInfoMax(model).corruptions(batch, generator):
        with record(model, corruption.batch) as false:
            model(corruption.batch)
        for sample in false_samples(true, false, corruption)[true.records[0].key]:
            held = true.records[0].constituents.dense()
            for n in sample.weight.nonzero()[:, 0]:
                message = sample.constituents.dense()[n]
                assert not (held[true.records[0].index == sample.target[n]] - message).abs().sum(1).min() < 1e-9
            assert (sample.weight == 0).any()

"""Site-Net by the kernels: the numbers of the plain path, with every gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pyg_dim import native, record
from pyg_dim.models import SiteNet, pair_attention
from pyg_dim.objectives.deep_infomax import DeepInfoMax
from pyg_dim.objectives.supervised import Supervised

NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu", "NaCl"]
WIDTHS = {
    "site_channels": 16, "pair_channels": 16, "attention_hidden": [16], "value_hidden": [32], "local_channels": 8,
    "pre_pool": [16, 12], "post_pool": [32, 10],
}  # fmt: skip
COVERED = {
    "one head": {},
    "two heads": {"heads": 2},
    "bilinear critic": {"critic": "bilinear"},
    "info_nce": {"estimator": "info_nce", "noise": "learned"},
    "equal weights": {"distance_weights": False, "noise": "none"},
}
UNCOVERED = {
    "two blocks": {"blocks": 2},
    "no hidden layer of the values": {"value_hidden": []},
    "two hidden layers of the values": {"value_hidden": [16, 32]},
    "two hidden layers of the weights": {"attention_hidden": [16, 16]},
    "values of a width between": {"site_channels": 24},
    "pair features of a width between": {"pair_channels": 5},
    "a hidden layer of a width between": {"value_hidden": [40]},
    "weights of a width between": {"attention_hidden": [8]},
}


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    if (reason := native.fault()) is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _exact_softplus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's gives t itself for t > 20, an error of up to 2e-9; the kernel does not."""
    monkeypatch.setattr(F, "softplus", lambda t: torch.logaddexp(t, torch.zeros_like(t)))


def test_a_compiler_is_turned_away_before_it_meets_a_kernel() -> None:
    block = pair_attention.Block(16, 16)
    x = torch.randn(3, 16)
    expected = block(x)
    block.fused = True
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sites of every call of the kernel of attention."""
    sites, attend = [], pair_attention.attend

    def counted(*arguments):
        sites.append(arguments[0].size(0))
        return attend(*arguments)

    monkeypatch.setattr(pair_attention, "attend", counted)
    return sites


def both(model: SiteNet, run) -> list[tuple[torch.Tensor, dict[str, torch.Tensor]]]:
    """What run gives, and the gradients, plainly and by the kernels."""
    found = []
    for kernels in (False, True):
        model.set_kernels(kernels)
        model.zero_grad()
        torch.manual_seed(5)
        out = run()
        total = out["total"] if isinstance(out, dict) else out.square().sum()
        total.backward()
        # Also those that are zero: a parameter without one is no part of a step.
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((out if isinstance(out, dict) else {"out": out}, gradients))
    return found


def compare(plain, ours, tolerance: float = 1e-10) -> None:
    for a, b in zip(plain, ours, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            error = (a[name] - b[name]).abs().max()
            # Gradients that are zero by symmetry are rounding in both.
            assert error <= tolerance * a[name].abs().max().clamp(min=1e-3), name
    assert sum(gradient.abs().max() > 1e-6 for gradient in plain[1].values()) > 20


@pytest.mark.parametrize("isolate", [True, False], ids=["isolated", "joint"])
@pytest.mark.parametrize("options", [*COVERED, *UNCOVERED])
def test_deep_infomax(options: str, isolate: bool, attended, batch_of) -> None:
    model = SiteNet(**WIDTHS | (COVERED | UNCOVERED)[options]).double()
    batch = batch_of(NAMES)
    objective = DeepInfoMax(model, isolate=isolate)
    plain, ours = both(model, lambda: objective(batch, generator=torch.Generator().manual_seed(3)))
    compare(plain, ours)
    # The true pass, the transplant and the permutation.
    assert attended == ([batch.z.numel()] * 3 if options in COVERED else [])


def test_several_blocks_take_the_kernel_of_layer_norms(monkeypatch, batch_of) -> None:
    rows, normed = [], pair_attention.mish_norm
    monkeypatch.setattr(pair_attention, "mish_norm", lambda x, *of: rows.append(x.size(0)) or normed(x, *of))
    model, batch = SiteNet(**WIDTHS, blocks=2), batch_of(NAMES, torch.float32)
    model.set_kernels(True)
    model(batch)
    pairs = batch.edge_index.size(1)
    # The embedding, then attention and two layers of values in each block, and the pairs between them.
    assert rows.count(pairs) == 1 + 2 * 3 + 1
    assert model.has_kernels
    assert not SiteNet(**WIDTHS | {"value_hidden": [9]}, blocks=2).has_kernels
    assert not SiteNet(**WIDTHS | {"value_hidden": []}).has_kernels


@pytest.mark.parametrize("options", ["two heads", "two blocks"])
def test_supervised(options: str, batch_of) -> None:
    model = SiteNet(**WIDTHS | (COVERED | UNCOVERED)[options]).double()
    batch = batch_of(NAMES)
    batch.y = torch.randn(len(NAMES), 1, dtype=torch.float64)
    objective = Supervised(model, targets=["y"]).double()
    compare(*both(model, lambda: objective(batch)))


def test_single_precision(batch_of) -> None:
    model = SiteNet(**WIDTHS)
    batch = batch_of(NAMES, torch.float32)
    objective = DeepInfoMax(model)
    compare(*both(model, lambda: objective(batch, generator=torch.Generator().manual_seed(3))), tolerance=1e-3)


@pytest.mark.parametrize("names", [["Cu"], ["Cu", "Cu"], ["TiO2"]], ids=str)
def test_small_batches(names, batch_of) -> None:
    model, batch = SiteNet(**WIDTHS).double(), batch_of(names)
    compare(*both(model, lambda: model(batch)))


def test_sites_without_pairs(batch_of) -> None:
    model, batch = SiteNet(**WIDTHS).double(), batch_of(NAMES)
    keep = (batch.edge_index[1] != 0) & (batch.edge_index[1] != 7)
    batch.edge_index, batch.edge_dist = batch.edge_index[:, keep], batch.edge_dist[keep]
    torch.nn.init.uniform_(model.local.kernel_block.value[-1].norm.bias, 1, 2)
    compare(*both(model, lambda: model(batch)))


def test_lengths_of_another_type_are_not_read_as_numbers(attended, batch_of) -> None:
    model, batch = SiteNet(**WIDTHS).double(), batch_of(NAMES)
    batch.edge_dist = batch.edge_dist.float()
    compare(*both(model, lambda: DeepInfoMax(model)(batch, generator=torch.Generator().manual_seed(3))))
    assert not attended


def test_gradients_of_lengths(attended, batch_of) -> None:
    model, batch = SiteNet(**WIDTHS).double(), batch_of(NAMES)
    lengths, found = batch.edge_dist, []
    for kernels in (False, True):
        model.set_kernels(kernels)
        batch.edge_dist = lengths.clone().requires_grad_()
        with record(model, batch) as tape:
            model(batch)
        total = tape.losses(kinds=("other",), generator=torch.Generator().manual_seed(3))["total"]
        found.append(torch.autograd.grad(total, batch.edge_dist)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    assert not attended


def test_parameters_that_change_between_steps(batch_of) -> None:
    """What passes share is that of one step."""
    batch, steps = batch_of(NAMES), []
    for kernels in (False, True):
        torch.manual_seed(0)
        model = SiteNet(**WIDTHS).double()
        model.set_kernels(kernels)
        objective, optimizer = DeepInfoMax(model), torch.optim.SGD(model.parameters(), lr=1e-3)
        generator = torch.Generator().manual_seed(3)
        for _ in range(3):
            optimizer.zero_grad()
            loss = objective(batch, generator)["total"]
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            steps.append((loss, objective.eval()(batch, generator)["total"]))
    torch.testing.assert_close(*steps, rtol=1e-8, atol=1e-10)


def test_two_calls_in_one_recording(batch_of) -> None:
    model, batch = SiteNet(**WIDTHS).double(), batch_of(NAMES)

    def run() -> torch.Tensor:
        with record(model, batch):
            return model(batch) + 2 * model(batch)

    compare(*both(model, run))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_embedding(mode, batch_of) -> None:
    model = SiteNet(**WIDTHS).double().eval()
    expected = model(batch_of(NAMES)).detach()
    model.set_kernels(True)
    with mode():
        batch = batch_of(NAMES)
        for _ in range(2):
            torch.testing.assert_close(model(batch), expected, rtol=1e-10, atol=1e-12)
        DeepInfoMax(model)(batch)


@pytest.mark.parametrize("missing", ["attention", "lengths", "mish_norm", "scores"])
def test_a_kernel_that_cannot_be_built_is_done_without(missing, monkeypatch, batch_of) -> None:
    """Of a full disk or a compiler that is killed half-way; the others still serve."""
    model = SiteNet(**WIDTHS, noise="none").double()
    objective = DeepInfoMax(model)
    batch = batch_of(NAMES)
    expected = objective(batch, torch.Generator().manual_seed(0))["total"]
    built = native.library

    def library(name, dtype, **widths):
        if name == missing:
            raise native.NoKernelError("no room on the disk")
        return built(name, dtype, **widths)

    native.fault.cache_clear()
    monkeypatch.setattr(native, "library", library)
    model.set_kernels(True)
    found = objective(batch, torch.Generator().manual_seed(0))["total"]
    monkeypatch.undo()
    native.fault.cache_clear()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)

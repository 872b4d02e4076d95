"""A training step asks the device for nothing, so that the host never waits for a GPU in it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyg_dim.false_samples import equality
from pyg_dim.models import MODELS, batch_norm, build
from pyg_dim.objectives.deep_infomax import KINDS, DeepInfoMax
from pyg_dim.objectives.supervised import Supervised
from pyg_dim.training.module import TrainingModule

ASKS = (
    "_local_scalar_dense", "nonzero", "masked_select", "masked_scatter", "unique", "equal.default", "bincount", "histc",
    "multinomial", "_linalg_check_errors",
)  # fmt: skip
"""Parts of the names of operators of which the host waits for an answer, or for the size of the result."""
SMALL = {
    "sitenet": {"site_channels": 8, "pair_channels": 6, "heads": 2, "blocks": 2, "local_channels": 8,
                "pre_pool": [8], "post_pool": [8, 10]},
    "cgcnn": {"site_channels": 8, "convolutions": 2, "gaussian_step": 0.8, "k": 9},
    "megnet": {"element_channels": 5, "gaussians": 20, "blocks": 2, "feature_channels": 8, "dense_hidden": [9],
               "convolution_hidden": [10]},
    "alignn": {"alignn_layers": 2, "gcn_layers": 2, "hidden_channels": 8, "embedding_channels": 7, "k": 6},
    "roost": {"site_channels": 8, "layers": 2, "heads": 2, "hidden_channels": 9, "trunk": [16, 12],
              "element_channels": 7},
}  # fmt: skip
VARIANTS = {
    "sitenet": [{}, {"tolerance": 1e-4}, {"estimator": "info_nce", "noise": "learned"}],
    "cgcnn": [{}, {"species_channels": 5}, {"critic": "bilinear", "kl": "paper"}],
    "megnet": [{}, {"fidelities": 4}],
    "alignn": [{}, {"tolerance": None}],
    "roost": [{}, {"elements": "magpie", "estimator": "info_nce"}],
}
STEPS = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
NAMES = ["NaCl", "ZnS", "CaTiO3", "TiO2", "triclinic", "Cu"]


class _Making(TorchFunctionMode):
    """Notes tensors that are made of numbers of the host elsewhere: the stand-in makes them without an operator."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
        if made and out.device.type != "cpu":
            self.found.append(f"{func.__name__}: numbers of the host")
        return out


class Waiting(TorchDispatchMode):
    """Notes every operator for which the host would have to wait for the device that stands in for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._making = _Making(self.found)

    def __enter__(self) -> Waiting:
        self._making.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._making.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if reason := self.reason(str(func), args, kwargs or {}):
            self.found.append(f"{func}: {reason}")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def reason(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        there = [value for value in tensors if value.device.type != "cpu"]
        target = torch.device(kwargs.get("device") or "cpu").type
        # A number on the host becomes an argument of a kernel; anything larger is copied.
        if any(value.device.type == "cpu" and value.dim() for value in tensors) and (there or target != "cpu"):
            return "a copy from the host"
        if there and target == "cpu" and "_to_copy" in name and kwargs.get("device") is not None:
            return "a copy to the host"
        if there and any(part in name for part in ASKS):
            return "an answer"
        if there and "repeat_interleave.Tensor" in name and kwargs.get("output_size") is None:
            return "a size that only the device knows"
        indexes = tree_leaves(args[1]) if name.startswith(("aten.index.", "aten.index_put")) else []
        if there and any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indexes):
            return "a mask as an index"
        return None


def test_all_encoders_are_here() -> None:
    assert SMALL.keys() == VARIANTS.keys() == MODELS.keys()


def test_what_makes_the_host_wait_is_noticed() -> None:
    """Each way, on the CPU as the device."""
    values, mask = torch.arange(3.0, device="meta"), torch.ones(3, dtype=torch.bool, device="meta")
    asking: list[Callable[[], object]] = [
        lambda: values.sum().item(),
        lambda: bool(mask.any()),
        lambda: values.tolist(),
        lambda: values[mask],
        lambda: values.__setitem__(mask, values.new_ones(3)),
        lambda: mask.nonzero(),
        lambda: values.masked_select(mask),
        lambda: values.unique(),
        lambda: values.unique(return_counts=True),
        lambda: values.unique_consecutive(),
        lambda: values.equal(values + 1),
        lambda: torch.repeat_interleave(mask.long()),
        lambda: values.long().bincount(minlength=3),
        lambda: torch.linalg.inv(values.new_ones(2, 2)),
        lambda: values.cpu(),
        lambda: torch.tensor([1.0, 2.0]).to("meta"),
        lambda: values.copy_(torch.ones(3)),
        lambda: torch.tensor([1.0, 2.0], device="meta"),
        lambda: torch.tensor(1.0, device="meta"),
        lambda: values.new_tensor([1.0]),
        lambda: values.__setitem__(mask, 0.0),
        lambda: values[torch.tensor([0, 1])],
    ]
    for number, ask in enumerate(asking):
        with contextlib.suppress(RuntimeError, NotImplementedError), Waiting() as waiting:
            ask()
        assert waiting.found, number
    with Waiting() as waiting:
        total = values.where(mask, 0.0) + torch.tensor(2.0) * values.clamp(min=0.5) + 3
        total += torch.repeat_interleave(mask.long(), output_size=3)
        torch.linalg.inv_ex(total.new_ones(2, 2)).inverse.to(torch.float64)
        values[mask.long()].index_add(0, mask.long(), values)
        torch.tensor([1.0, 2.0]).sum().item()
    assert waiting.found == []


@pytest.fixture
def graph_of(batch_of):
    """``graph_of(encoder)``: a batch with its graph, labels (one missing) and states."""

    def make(encoder: Any) -> Any:
        batch = encoder.graph(batch_of(NAMES, torch.float32))
        batch.y = torch.randn(len(NAMES), 2).index_fill(0, torch.tensor(1), float("nan"))
        batch.state = torch.arange(len(NAMES)) % 4
        return batch

    return make


class Alone(TrainingModule):
    """A single process without a trainer."""

    @property
    def _data(self) -> Any:
        return SimpleNamespace(train=SimpleNamespace(crystals=lambda step: [3]))


def module_of(name: str, options: dict[str, Any], objective: str) -> TrainingModule:
    encoder = build(name, **SMALL[name], **options)
    if "species_channels" in options:
        encoder.site_input.species = torch.randn(encoder.site_input.species.shape)
    made = DeepInfoMax(encoder, KINDS) if objective == "deep_infomax" else Supervised(encoder, ["a", "b"])
    return Alone(made, 1e-3, 0.0, 0, {})


def step(module: TrainingModule, batch: Any, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    module.training_step(batch, 0).backward()
    optimiser.step()


@pytest.mark.parametrize("objective", ["deep_infomax", "supervised"])
@pytest.mark.parametrize(("name", "options"), STEPS, ids=str)
def test_a_step_on_a_stand_in_for_a_gpu(name, options, objective, graph_of, monkeypatch) -> None:
    """PyTorch's meta device: no numbers, so that nothing can be asked for, and no path for the CPU is taken."""
    # The one switch that device does not have.
    monkeypatch.setattr(batch_norm.torch, "autocast", lambda *args, **options: contextlib.nullcontext())
    module = module_of(name, options, objective)
    batch = graph_of(module.encoder)
    # Looked at in the first step, as the vectors of all elements.
    module.training_step(batch, 0)
    module.on_train_epoch_start()
    module, batch = module.to("meta"), batch.to("meta")
    optimiser = module.configure_optimizers()
    equality._frequencies.cache_clear()
    try:
        step(module, batch, optimiser)
        with Waiting() as waiting:
            step(module, batch, optimiser)
    finally:
        equality._frequencies.cache_clear()
    assert waiting.found == []
    assert all(p.grad is not None for n, p in module.named_parameters() if n.endswith("output.weight"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("objective", ["deep_infomax", "supervised"])
@pytest.mark.parametrize(("name", "options"), STEPS, ids=str)
def test_a_step_on_a_gpu(name, options, objective, precision, graph_of) -> None:
    module = module_of(name, options, objective)
    batch = graph_of(module.encoder).to("cuda")
    module = module.to("cuda")
    optimiser = module.configure_optimizers()
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        step(module, batch, optimiser)
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(module, batch, optimiser)
        finally:
            torch.cuda.set_sync_debug_mode("default")

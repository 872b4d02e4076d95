"""Programs that pre-train Site-Net with Deep InfoMax, and embed crystals: the published one, and ours by its switches.

A new way to run ours is a line in :data:`OURS`. All start from the same parameters and are given the same crystals.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Protocol

import reference_sitenet_dim as reference
import torch
from torch import Tensor, nn

from pyg_dim.data import CrystalBatch, CrystalDataset, CrystalLoader, DenseSupercell
from pyg_dim.data.keys import EDGE_DIST, PAIR_DIST
from pyg_dim.models import Encoder, SiteNet
from pyg_dim.objectives.deep_infomax import DeepInfoMax


@dataclass(frozen=True)
class Switches:
    """How ours runs.

    Attributes:
        switch: called with the encoder.
        options: arguments of :class:`~pyg_dim.models.SiteNet`, the graph that it asks for included.
        bfloat16: whether in mixed precision.
    """

    switch: Callable[[SiteNet], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    bfloat16: bool = False


def fastest(encoder: Encoder) -> None:
    """Switch an encoder as a training run does: kernels in C++ on a CPU, torch.compile for what they do not serve."""
    on_cpu = next(encoder.parameters()).device.type == "cpu"
    encoder.set_kernels(on_cpu)
    encoder.set_compile(not (on_cpu and encoder.has_kernels))


TWO_BLOCKS: Final = {"blocks": 2, "tolerance": 1e-4}
OURS: Final[dict[str, Switches]] = {
    "eager": Switches(lambda encoder: None),
    "compiled": Switches(lambda encoder: encoder.set_compile(True)),
    "compiled-bf16": Switches(lambda encoder: encoder.set_compile(True), bfloat16=True),
    "fastest": Switches(fastest),
    "symmetry": Switches(fastest, {"tolerance": 1e-4}),
    "blocks-eager": Switches(lambda encoder: None, TWO_BLOCKS),
    "blocks-compiled": Switches(lambda encoder: encoder.set_compile(True), TWO_BLOCKS),
    "blocks-fastest": Switches(fastest, TWO_BLOCKS),
}
PUBLISHED: Final = "published"
FASTEST: Final = "fastest"
"""What benchmarks take that time one of ours alone."""
COMPARED: Final = (PUBLISHED, "eager", "compiled", "fastest", "symmetry")
"""What benchmarks compare by default; the first is the reference."""


class Program(Protocol):
    """One way to learn from and to embed batches."""

    encoder: SiteNet

    def prepare(self, batch: CrystalBatch) -> Any:
        """What the program is given: the batch with its pairs, laid out as it likes."""

    def learn(self, prepared: Any) -> int:
        """A training step, from the batch on hand to the step of the optimiser; how many crystals it was."""

    def embed(self, prepared: Any) -> int:
        """Global representations without gradient; how many crystals it was."""


def optimiser_of(module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a training run, with its defaults."""
    return torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=1e-4, eps=1e-7, amsgrad=True)


class Ours:
    """This package.

    Args:
        switches: how it runs.
        seed: of the parameters.
        supercell_sites: sites of a supercell, at most.
        device: where.
        distribute: what the objective is wrapped in where several processes train together.
    """

    def __init__(
        self,
        switches: Switches,
        seed: int,
        supercell_sites: int,
        device: str,
        distribute: Callable[[nn.Module], nn.Module] = lambda objective: objective,
    ) -> None:
        torch.manual_seed(seed)
        self.encoder = SiteNet(supercell_sites=supercell_sites, **switches.options).to(device)
        switches.switch(self.encoder)
        self.objective = distribute(DeepInfoMax(self.encoder))
        self.optimiser = optimiser_of(self.objective)
        self.mixed = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=switches.bfloat16)

    def prepare(self, batch: CrystalBatch) -> CrystalBatch:
        """See :class:`Program`."""
        return self.encoder.graph(copy(batch))

    def learn(self, prepared: CrystalBatch) -> int:
        """See :class:`Program`."""
        self.optimiser.zero_grad()
        with self.mixed:
            loss = self.objective(as_new(prepared))["total"]
        loss.backward()
        self.optimiser.step()
        return prepared.num_graphs

    @torch.no_grad()
    def embed(self, prepared: CrystalBatch) -> int:
        """See :class:`Program`."""
        with self.mixed:
            return self.encoder(as_new(prepared)).size(0)


class Published:
    """The published algorithm, ``reference_sitenet_dim.py``; arguments as those of :class:`Ours`."""

    def __init__(self, seed: int, supercell_sites: int, device: str) -> None:
        torch.manual_seed(seed)
        self.encoder = SiteNet(supercell_sites=supercell_sites).to(device)
        self.optimiser = optimiser_of(self.encoder)

    def prepare(self, batch: CrystalBatch) -> reference.PaddedBatch:
        """See :class:`Program`."""
        return reference.pad_pairs(self.encoder.graph(copy(batch)))

    def learn(self, prepared: reference.PaddedBatch) -> int:
        """See :class:`Program`."""
        self.optimiser.zero_grad()
        loss: Tensor = reference.training_loss(self.encoder, prepared)
        loss.backward()
        self.optimiser.step()
        return prepared.count.numel()

    @torch.no_grad()
    def embed(self, prepared: reference.PaddedBatch) -> int:
        """See :class:`Program`."""
        site, *_ = reference.encode(self.encoder, prepared.x, prepared.distance, prepared.padding, prepared.source)
        return reference.represent_crystals(self.encoder, prepared, site)[0].size(0)


def switches_of(name: str) -> Switches:
    """Switches of one of ours.

    Args:
        name: a key of :data:`OURS`.

    Returns:
        Its switches.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in OURS:
        raise ValueError(f"unknown variant {name!r}; known: {', '.join((PUBLISHED, *OURS))}")
    return OURS[name]


def programs(names: Sequence[str], seed: int, supercell_sites: int, device: str) -> dict[str, Program]:
    """Programs by name, each with parameters and an optimiser of its own.

    Args:
        names: "published", or keys of :data:`OURS`.
        seed: of the parameters, the same of all.
        supercell_sites: sites of a supercell, at most.
        device: where.

    Returns:
        The programs, in this order.

    Raises:
        ValueError: an unknown name.
    """
    return {
        name: Published(seed, supercell_sites, device)
        if name == PUBLISHED
        else Ours(switches_of(name), seed, supercell_sites, device)
        for name in names
    }


def as_new(batch: CrystalBatch) -> CrystalBatch:
    """A copy that knows nothing of earlier steps: the rows of pairs are kept for tensors of lengths."""
    batch = copy(batch)
    for key in (EDGE_DIST, PAIR_DIST):
        if key in batch:
            batch[key] = batch[key].clone()
    return batch


def first_batches(dataset: CrystalDataset, number: int, batch_sites: int, seed: int) -> list[CrystalBatch]:
    """The first batches of a shuffled epoch without pairs, fewer where it has not as many; on the data's device."""
    loader = CrystalLoader(dataset, lambda batch: batch, batch_sites, seed=seed)
    return [batch for batch, _ in zip(loader, range(number), strict=False)]


def count_pairs(batches: Sequence[CrystalBatch], supercell_sites: int) -> int:
    """Pairs of primitive sites with sites of their supercells, of all batches together."""
    graph = DenseSupercell(supercell_sites)
    return sum(graph(copy(batch)).edge_dist.numel() for batch in batches)


def endless(loader: CrystalLoader) -> Generator[CrystalBatch, None, None]:
    """Batches of epoch after epoch."""
    for epoch in count():
        loader.set_epoch(epoch)
        yield from loader

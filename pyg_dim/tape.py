"""Recordings: what the levels of a model saw in one forward pass, and the loss made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import Tensor, nn

from pyg_dim.constituents import Constituents
from pyg_dim.isolation import Isolation
from pyg_dim.losses import ESTIMATORS

if TYPE_CHECKING:
    from pyg_dim.level import Level

Scope = Literal["edge", "site", "crystal"]
RecordKey = tuple[str, int]


@dataclass(frozen=True)
class Record:
    """One call of one level.

    Attributes:
        name: path of the level in the model.
        call: number of the call of this level in the pass, from 0.
        level: the level itself.
        z: [G, D] representations, with their gradient.
        constituents: n constituents, detached.
        index: [n] group of each constituent.
        weight: [n] weights >= 0 of the constituents, or None for equal ones.
        hidden: [G, H] vectors from which noise is read.
        scope: what a group is, where known: an edge, a site or a crystal.
        crystal: [G] crystal of each group, or None where unknown.
        num_crystals: number of crystals of the batch, 0 where unknown.
        training: whether the level was in training mode: only then its representations get noise.
    """

    name: str
    call: int
    level: Level
    z: Tensor
    constituents: Constituents
    index: Tensor
    weight: Tensor | None
    hidden: Tensor
    scope: Scope | None
    crystal: Tensor | None
    num_crystals: int
    training: bool

    @property
    def key(self) -> RecordKey:
        """What aligns the records of two passes."""
        return self.name, self.call

    def to(self, dtype: torch.dtype) -> Record:
        """The same record in numbers of another type."""
        z, hidden, constituents = self.z.to(dtype), self.hidden.to(dtype), self.constituents.to(dtype)
        return replace(self, z=z, hidden=hidden, constituents=constituents)


@dataclass(frozen=True)
class FalseSample:
    """Constituents of one kind that do not belong to the sets that they are scored against.

    Attributes:
        kind: name of the kind.
        constituents: n constituents, detached; the object of another sample where both share theirs.
        target: [n] group that each is scored against.
        weight: [n] weights >= 0, zero where a constituent is masked; None for equal ones.
        group_target: [G] where the constituents lie in the same groups as those of the true pass: the group that those
            of each are scored against; None elsewhere.
    """

    kind: str
    constituents: Constituents
    target: Tensor
    weight: Tensor | None
    group_target: Tensor | None = None

    def to(self, dtype: torch.dtype) -> FalseSample:
        """The same samples in numbers of another type."""
        return replace(self, constituents=self.constituents.to(dtype))


@dataclass(frozen=True)
class LevelLoss:
    """Loss of one record: the mean over groups, then crystals.

    Attributes:
        loss: Jensen-Shannon loss (eq. 6), or that of another estimator, scalar.
        counted: share of the groups that have both constituents and a valid false sample, so that the loss is of them.
        kl: KL term, scalar, or None without noise.
        terms: its parts: "true" and each kind of false samples, scalars.
        coverage: share of the groups that had a valid sample of each kind, scalars.
    """

    loss: Tensor
    counted: Tensor
    kl: Tensor | None
    terms: dict[str, Tensor]
    coverage: dict[str, Tensor]


class Tape:
    """What the levels of a model recorded in one pass, in the order of their calls.

    Made by :func:`record`.

    Attributes:
        shared: what passes over the same geometry with the same parameters have in common: encoders leave it in the
            true pass and find it in the corrupted ones, which need no gradient.
    """

    def __init__(
        self,
        names: Mapping[nn.Module, str],
        batch: Any = None,
        isolate: bool = False,
        shared: dict[Any, Tensor] | None = None,
    ) -> None:
        self.names = names
        self.shared: dict[Any, Tensor] = {} if shared is None else shared
        self.batch = batch
        self.isolate = isolate
        self._isolation = Isolation()
        self.records: list[Record] = []
        self._calls: defaultdict[str, int] = defaultdict(int)

    def add(
        self,
        level: Level,
        z: Tensor,
        constituents: Constituents,
        index: Tensor,
        hidden: Tensor,
        weight: Tensor | None,
    ) -> None:
        """Note one call of a level; levels do this themselves.

        Args:
            level: the level that is called.
            z: [G, D] representations.
            constituents: n constituents.
            index: [n] group of each constituent.
            hidden: [G, H] vectors that noise is read from.
            weight: [n] weights of the constituents, or None.

        Raises:
            ValueError: the batch of the recording has another number of groups of that scope.
        """
        name = self.names[level]
        scope, crystal, num_crystals = self._groups(level.scope, z.size(0))
        if crystal is not None and crystal.numel() != z.size(0):
            raise ValueError(
                f"level {name!r} (scope {scope!r}) was given {z.size(0)} groups where the batch has {crystal.numel()}; "
                "record the batch that the model is called with, or build the level with another scope"
            )
        if self.isolate:
            z, hidden = self._isolation.close(z, hidden)
        self.records.append(
            Record(
                name, self._calls[name], level, z, constituents.detach(), index, weight, hidden,
                scope, crystal, num_crystals, level.training,
            )
        )  # fmt: skip
        self._calls[name] += 1

    def _groups(self, scope: Scope | None, num_groups: int) -> tuple[Scope | None, Tensor | None, int]:
        site_crystal = getattr(self.batch, "batch", None)
        if site_crystal is None:
            return scope, None, 0
        num_crystals = self.batch.num_graphs
        if scope is None:
            sizes: dict[Scope, int] = {"crystal": num_crystals, "site": site_crystal.size(0)}
            scope = next((s for s, size in sizes.items() if size == num_groups), None)
        if scope == "crystal":
            return scope, torch.arange(num_crystals, device=site_crystal.device), num_crystals
        if scope == "site":
            return scope, site_crystal, num_crystals
        if scope == "edge":
            return scope, site_crystal[self.batch.edge_index[1]], num_crystals
        return None, None, 0

    def losses(
        self,
        false: Mapping[RecordKey, Sequence[FalseSample]] | None = None,
        *,
        kinds: str | Sequence[str] = ("other",),
        alpha: float = 1.0,
        beta: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        r"""Losses of the recorded pass, for training and for logs.

        .. math:: \mathrm{total} = \sum_\text{levels} \alpha J + \beta K \qquad \text{(eq. 5)}

        Each call draws new noise and new ``other`` samples: call it once a step.

        Args:
            false: false samples of each record that other passes gave.
            kinds: kinds that need no other pass: "other", "unconnected".
            alpha: weight of the Jensen-Shannon loss J (or that of another estimator).
            beta: weight of the KL term K.
            generator: random numbers, on the device of the batch.

        Returns:
            Scalars: "total"; "js/local", "js/global", "kl/local", "kl/global" (means over the site and the crystal
            levels, where there are any); under "detail/<level>/" js, kl, true and each kind. Beside js and each kind
            stands <name>/coverage, the share of groups that it is the mean of. Levels with the estimator "info_nce"
            have nce in place of js.

        Raises:
            ValueError: no level was called in the recording, the batch of the recording fits none of them, an unknown
                kind, or kinds that no level has.

        Source: Moran et al., Digital Discovery 2025, 4, 790, eq. 5 and 6.
        """
        if not self.records:
            raise ValueError(
                "nothing was recorded: no level of the model was called inside `with record(model, batch)`; "
                "call the model there and ask for the loss afterwards"
            )
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        if self.batch is not None and all(entry.scope is None for entry in self.records):
            raise ValueError(
                "no level has as many groups as the recorded batch has nodes or graphs "
                f"({self.batch.batch.numel()}, {self.batch.num_graphs}); record the batch that the model is called with"
            )
        total: Tensor | None = None
        possible = False
        parts: defaultdict[str, list[Tensor]] = defaultdict(list)
        out: dict[str, Tensor] = {}
        for record in self.records:
            loss = record.level.loss(record, (false or {}).get(record.key, ()), kinds=kinds, generator=generator)
            where = "global" if record.scope == "crystal" else "local"
            detail = f"detail/{record.name}" + (f".{record.call}" if record.call else "")
            # Without edges there are no kinds in one batch, and there may be in the next.
            possible |= bool(loss.coverage) or not record.index.numel()
            share = alpha * loss.loss
            name = ESTIMATORS[record.level.estimator]
            out |= {f"{detail}/{name}": loss.loss.detach(), f"{detail}/{name}/coverage": loss.counted}
            parts[f"{name}/{where}"].append(loss.loss.detach())
            parts[f"{name}/{where}/coverage"].append(loss.counted)
            if loss.kl is not None:
                share = share + beta * loss.kl
                parts[f"kl/{where}"].append(loss.kl.detach())
                out[f"{detail}/kl"] = loss.kl.detach()
            out |= {f"{detail}/{kind}": term for kind, term in loss.terms.items()}
            out |= {f"{detail}/{kind}/coverage": share_ for kind, share_ in loss.coverage.items()}
            total = share if total is None else total + share
        if kinds and not possible:
            raise ValueError(
                f"no level has false samples of the kind {', '.join(kinds)}: "
                f"{', '.join(entry.name for entry in self.records)}; take 'other' too"
            )
        assert total is not None  # noqa: S101 - there is at least one record
        return {"total": total} | {name: torch.stack(values).mean() for name, values in parts.items()} | out

    def loss(self, **options: Any) -> Tensor:
        """The total of :meth:`losses`, a scalar with its gradient; same arguments."""
        return self.losses(**options)["total"]


# A plain list, since torch.compile cannot read a context variable and levels ask in every forward pass.
_RECORDING: Final[list[Tape]] = []


def active_tape() -> Tape | None:
    """The innermost tape that is being recorded, if any."""
    return _RECORDING[-1] if _RECORDING else None


@contextmanager
def record(
    model: nn.Module, batch: Any = None, *, isolate: bool = False, shared: dict[Any, Tensor] | None = None
) -> Iterator[Tape]:
    """Record what the levels of a model see while it runs inside the ``with`` block.

    A tape belongs to one pass. Inside a checkpointed region (recomputed in the backward pass) nothing can be recorded.

    Args:
        model: model that holds at least one :class:`Level` or :class:`DIMPool`.
        batch: the batch of the pass (PyG ``Batch`` or alike, with ``batch`` and ``num_graphs``); tells which crystal a
            group is of. Without it every group counts by itself, and ``other`` means other groups.
        isolate: levels hand their representation on without gradient, and what goes around them is cut off from
            earlier levels, so that each learns from its own loss alone (sec. 2.4 of the paper).
        shared: that of the :class:`Tape` of a pass over the same geometry with the same parameters.

    Yields:
        The :class:`Tape`.

    Raises:
        ValueError: the model holds no level, or the batch does not tell which graph a node belongs to.
    """
    from pyg_dim.level import Level  # a level reads the active tape, so the modules know each other

    names: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, Level)}
    if not names:
        raise ValueError(
            f"{type(model).__name__} holds no level to record: wrap(model), or put DIMPool(...) in the place of one of "
            "its aggregations"
        )
    if batch is not None and not (hasattr(batch, "batch") and hasattr(batch, "num_graphs")):
        raise ValueError(
            f"record(model, batch) needs a batch with `batch` and `num_graphs`, as PyG's DataLoader gives them, not a "
            f"{type(batch).__name__}"
        )
    tape = Tape(names, batch, isolate, shared)
    _RECORDING.append(tape)
    try:
        yield tape
    finally:
        _RECORDING.pop()

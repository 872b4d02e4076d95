"""wrap and unwrap: an existing PyG model, made into a Deep InfoMax learner in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.aggr import Aggregation
from torch_geometric.utils import is_sparse, to_edge_index

from pyg_dim.constituents import Constituents
from pyg_dim.critic import Critic, CriticName
from pyg_dim.level import Level, NoiseForm
from pyg_dim.losses import Estimator, KLForm
from pyg_dim.pool import DIMPool, hand_on
from pyg_dim.tape import active_tape

_NAME: Final = "dim_level"
_ADVICE: Final = "wrap the other layers one by one (wrap(model.conv1, ...)), or build this one with a Level in it"


@dataclass
class _Call:
    """What a layer was given in a call that is under way."""

    edges: list[Any]
    """Edge indices that ``edge_attr`` belongs to."""
    edge_attr: Tensor | None
    sets: list[Constituents] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    num_groups: set[int] = field(default_factory=set)


class LayerLevel(Level):
    """The level of a message passing layer: z is its output, the constituents are its incoming (x_j, edge_attr).

    Made by :func:`~pyg_dim.wrap`. Constituents are taken before the message function: a message that contains x_i, as
    in CGConv, GATConv or PNAConv, would give the answer away. They are the features that the message takes of the
    sender (all its arguments named ``*_j``) and ``edge_attr``. Other values of an edge (attention, normalisation by
    degrees) know the receiver and are left out. Where a layer sends messages several times in one call, their union is
    the set.
    """

    _call: _Call | None = None

    def attach(self, layer: MessagePassing) -> None:
        """Listen to a layer.

        Args:
            layer: the layer.
        """
        self.handles: list[RemovableHandle] = [
            layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            layer.register_edge_update_forward_pre_hook(self._update_edges),
            layer.register_propagate_forward_pre_hook(self._send),
            layer.register_propagate_forward_hook(self._received),
            layer.register_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]

    def _enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tape = active_tape()
        if self.lazy or (tape is not None and self in tape.names):
            given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
            self._call = _Call(list(given.values()), _rows(given.get("edge_attr")))

    def _update_edges(self, layer: MessagePassing, given: tuple[Any, ...]) -> None:
        # A layer that adds self-loops gives them edge features here.
        edge_attr = _rows(given[2].get("edge_attr"))
        if self._call is not None and edge_attr is not None:
            self._call.edges, self._call.edge_attr = [given[0]], edge_attr

    def _send(self, layer: MessagePassing, given: tuple[Any, ...]) -> None:
        if self._call is None:
            return
        edge_index, _, values = given
        if is_sparse(edge_index):
            (target, source), _ = to_edge_index(edge_index)
        elif layer.flow == "source_to_target":
            source, target = edge_index[0], edge_index[1]
        else:
            target, source = edge_index[0], edge_index[1]
        parts: list[tuple[Tensor, Tensor | None]] = []
        for argument in layer.inspector.get_param_names("message"):
            if argument.endswith("_j"):
                value = values.get(argument[:-2])
                if isinstance(value, tuple | list):
                    value = value[0]  # of two kinds of nodes the first sends
                features = _rows(value, layer.node_dim)
                parts += [] if features is None else [(features, source)]
        edge_attr = _rows(values.get("edge_attr"))
        # What the layer was given belongs to the edges that it was given, not to others that it made of them.
        if edge_attr is None and any(edge_index is edges for edges in self._call.edges):
            edge_attr = self._call.edge_attr
        if edge_attr is not None:
            parts.append((edge_attr, None))
        if not parts:
            raise ValueError(
                f"{type(layer).__name__} cannot be wrapped: its message takes neither features of the sender "
                f"(arguments named *_j) nor edge_attr; {_ADVICE}"
            )
        self._call.sets.append(Constituents(*parts))
        self._call.targets.append(target)

    def _received(self, layer: MessagePassing, given: tuple[Any, ...], out: Any) -> None:
        if self._call is not None and isinstance(out, Tensor):
            self._call.num_groups.add(out.size(layer.node_dim))

    def _leave(self, layer: MessagePassing, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        call, self._call = self._call, None
        if call is None or out is None:
            return None
        z = out[0] if isinstance(out, tuple | list) else out
        rows = _rows(z, layer.node_dim)
        if rows is None:
            raise ValueError(
                f"{type(layer).__name__} cannot be wrapped: it returns a {type(z).__name__}, not vectors of nodes; "
                f"{_ADVICE}"
            )
        if not call.sets:
            raise ValueError(
                f"{type(layer).__name__} cannot be recorded: no call of its propagate was seen; a compiled model hides "
                "them, record the model itself"
            )
        if call.num_groups != {rows.size(0)}:
            raise ValueError(
                f"{type(layer).__name__} cannot be wrapped: it sends messages to {sorted(call.num_groups)} groups and "
                f"returns {rows.size(0)} vectors, so it is more than one step of aggregation; {_ADVICE}"
            )
        handed = self(rows, constituents=Constituents.cat(call.sets), index=torch.cat(call.targets))
        if handed is rows:
            return None
        handed = (
            handed.view(z.movedim(layer.node_dim, 0).shape).movedim(0, layer.node_dim) if z.dim() > 1 else handed[:, 0]
        )
        return handed if z is out else type(out)([handed, *out[1:]])


class ReadoutLevel(Level):
    """The level of an aggregation that a model calls itself: z is its output, constituents are what it aggregates.

    Made by :func:`~pyg_dim.wrap`.
    """

    def attach(self, aggregation: Aggregation) -> None:
        """Listen to an aggregation.

        Args:
            aggregation: the aggregation.
        """
        self.handles: list[RemovableHandle] = [aggregation.register_forward_hook(self._leave, with_kwargs=True)]

    def _leave(self, aggregation: nn.Module, args: tuple[Any, ...], given: dict[str, Any], z: Tensor) -> Tensor | None:
        if active_tape() is None and not self.lazy:
            return None
        return hand_on(self, z, args[0], given["index"], given["ptr"], given["dim"])


def wrap(
    model: nn.Module,
    *inputs: Any,
    noise: NoiseForm = "none",
    kl: KLForm = "log_variance",
    critic: CriticName | Callable[[int, int], Critic] = "dot_product",
    estimator: Estimator = "jensen_shannon",
) -> nn.Module:
    """Make a Deep InfoMax learner of a PyG model, in place: a level on every message passing layer and every readout.

    The outputs of the model stay what they are, bit for bit; inside ``with record(model, batch) as tape`` its levels
    are recorded. Widths are taken from the first call, and parameters get their values there: call the model once, or
    give ``inputs`` here, before you count, copy or save parameters. Readouts are modules of
    ``torch_geometric.nn.aggr``; a function such as ``global_mean_pool`` is not seen, use ``MeanAggregation()``.
    Layers and readouts that hold a level already are left as they are. ``reset_parameters`` of the model does not reach
    critics and noise.

    Args:
        model: the model.
        *inputs: positional arguments of a first call, which is made in evaluation mode; layers and readouts that it
            does not reach get no level. Where the model wants arguments by name, make the first call yourself.
        noise: noise on the representations, see :class:`~pyg_dim.DIMPool`.
        kl: form of the KL term, see :class:`~pyg_dim.Level`.
        critic: what scores, see :class:`~pyg_dim.Level`.
        estimator: loss of the scores, see :class:`~pyg_dim.Level`.

    Returns:
        The model itself.

    Raises:
        ValueError: no message passing layer or readout without a level, or a layer that cannot be seen as one step of
            aggregation. That shows in the first call; the model is as it was where ``inputs`` were given, else
            :func:`~pyg_dim.unwrap` it.

    Example:
        >>> model = wrap(GIN(16, 32, num_layers=3), batch.x, batch.edge_index)
    """
    found = list(_steps(model))
    if not found and any(isinstance(module, Level) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has levels on all of its layers and readouts already; unwrap(model) takes them out"
        )
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no message passing layer and no aggregation module; a "
            "functional readout such as global_mean_pool is not seen: use MeanAggregation() or DIMPool in its place"
        )
    for step in found:
        level = (LayerLevel if isinstance(step, MessagePassing) else ReadoutLevel)(
            -1, -1, noise=noise, kl=kl, critic=critic, estimator=estimator
        )
        some = next((p for p in model.parameters() if p.is_floating_point()), None)
        if some is not None:
            level.to(some.device, some.dtype)
        level.attach(step)
        step.add_module(_NAME, level.train(step.training))
    if inputs:
        try:
            _first_call(model, inputs)
        except BaseException:
            _detach(model)
            raise
        _detach(model, lazy_only=True)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """Undo :func:`~pyg_dim.wrap`, and put the bare aggregation in the place of every :class:`~pyg_dim.DIMPool`.

    Parameters of the model itself keep their values; critics and noise are dropped.

    Args:
        model: the model, changed in place.

    Returns:
        The model itself; the bare aggregation where it is a ``DIMPool``.
    """
    _detach(model)
    if isinstance(model, DIMPool):
        return unwrap(model.unwrap())
    for module in list(model.modules()):
        for name, child in list(module._modules.items()):
            if isinstance(child, DIMPool):
                setattr(module, name, unwrap(child))
    for module in model.modules():
        # PyG keeps the names of a layer's aggregations beside the modules.
        if isinstance(module, MessagePassing) and "DIMPool(" in str(module.aggr):
            several = isinstance(module.aggr, list)
            module.aggr = [str(a) for a in module.aggr_module.aggrs] if several else str(module.aggr_module)
    return model


def _steps(module: nn.Module) -> Iterator[nn.Module]:
    """Outermost message passing layers and aggregations that hold no level."""
    seen: set[nn.Module] = set()

    def visit(module: nn.Module) -> Iterator[nn.Module]:
        if module in seen:
            return
        seen.add(module)
        if not isinstance(module, MessagePassing | Aggregation):
            for child in module.children():
                yield from visit(child)
        elif not any(isinstance(inner, Level) for inner in module.modules()):
            yield module

    return visit(module)


def _first_call(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(*inputs)
    finally:
        for module, training in modes:
            module.training = training
    # Parts that were made in the call are in none of the modes above.
    for step in model.modules():
        if isinstance(level := getattr(step, _NAME, None), Level):
            level.train(step.training)


def _detach(model: nn.Module, lazy_only: bool = False) -> None:
    for step in list(model.modules()):
        level = getattr(step, _NAME, None)
        if isinstance(level, LayerLevel | ReadoutLevel) and (level.lazy or not lazy_only):
            for handle in level.handles:
                handle.remove()
            delattr(step, _NAME)


def _rows(values: Any, dim: int = 0) -> Tensor | None:
    """Floating point values as [rows, features], None for anything else."""
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.dim() == 0:
        return None
    if values.dim() == 2 and dim in (0, -2):
        return values  # the object itself: several calls of one layer then share it
    return values[:, None] if values.dim() == 1 else values.movedim(dim, 0).flatten(1)

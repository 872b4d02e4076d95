"""Isolation: what earlier levels were computed from gets no gradient of later ones."""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import Node


class Isolation:
    """Keeps the levels of one recorded pass independent models (sec. 2.4 of the paper).

    A level hands its representation on without gradient, but what went around it (a skip connection, the root weight of
    a convolution) is still connected. So each new level follows its graph back: where that enters what an earlier level
    was computed from, the gradient is dropped. A parameter that two levels share is trained by both.
    """

    def __init__(self) -> None:
        self._earlier: set[Node] = set()

    def close(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        """Cut the graph of a level off from those of earlier ones.

        Args:
            *outputs: representation of the level, and whatever else its loss is made of.

        Returns:
            The outputs; without gradient those that come from the very operation that gave an earlier level its own
            (parts of one tensor, for instance).
        """
        outputs = tuple(output.detach() if output.grad_fn in self._earlier else output for output in outputs)
        found: set[Node] = set()
        open_ends = [output.grad_fn for output in outputs if output.grad_fn is not None]
        while open_ends:
            node = open_ends.pop()
            if node in found or node in self._earlier:
                continue
            found.add(node)
            for position, (source, _) in enumerate(node.next_functions):
                if source is None:
                    continue
                # An AccumulateGrad node stands for a leaf: a parameter, which may well be shared.
                if source in self._earlier and not hasattr(source, "variable"):
                    _drop_gradient(node, position)
                else:
                    open_ends.append(source)
        self._earlier |= found
        return outputs


def _drop_gradient(node: Node, position: int) -> None:
    def hook(grad_inputs: tuple[Tensor, ...], _: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        return tuple(None if k == position else gradient for k, gradient in enumerate(grad_inputs))

    node.register_hook(hook)

"""Set2Set: a readout that asks a set several questions, each made of the answers before."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Set2Set(nn.Module):
    r"""Attention over a set, repeated with a query that an LSTM makes of the last answer.

    With :math:`q^* = 0` and an LSTM at rest, repeat

    .. math:: (h, c) = \mathrm{LSTM}(q^*; h, c), \qquad a_i = \mathrm{softmax}_i \langle x_i, h \rangle, \qquad
              q^* = \Big[h, \sum_i a_i x_i\Big]

    An empty set answers with zeros. PyG has such an aggregation, too; this one needs no look at the device, and takes
    the first query once: it is the same for all sets.

    Args:
        channels: width C of x.
        steps: number of repetitions.

    Source: Vinyals et al. 2016, as MEGNet (Chen et al. 2019) uses it.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.channels, self.steps = channels, steps
        self.lstm = nn.LSTMCell(2 * channels, channels)

    def forward(self, x: Tensor, index: Tensor, num_sets: int, count: Tensor | None = None) -> Tensor:
        """Read sets out.

        Args:
            x: [n, C] members.
            index: [n] set of each.
            num_sets: number of sets B.
            count: [n] how many equal members each stands for; one where None.

        Returns:
            [B, 2 C] the last query and its answer.
        """
        query = cell = x.new_zeros(1, self.channels)
        out = x.new_zeros(1, 2 * self.channels)
        for step in range(self.steps):
            query, cell = self.lstm(out, (query, cell))
            if step == 0:
                logits = (x @ query.T).squeeze(1)
                query, cell = (value.expand(num_sets, -1) for value in (query, cell))
            else:
                logits = (x * query.index_select(0, index)).sum(dim=1)
            weights = _softmax(logits, index, num_sets, count)
            answer = weights.new_zeros(num_sets, self.channels).index_add(0, index, x * weights[:, None])
            out = torch.cat([query, answer.to(query.dtype)], dim=1)
        return out


def _softmax(logits: Tensor, index: Tensor, num_sets: int, count: Tensor | None) -> Tensor:
    """Softmax over each set, in float32 at least; members that stand for several weigh as much as those together."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    largest = logits.new_zeros(num_sets).scatter_reduce(0, index, logits.detach(), "amax", include_self=False)
    raw = (logits - largest.index_select(0, index)).exp()
    raw = raw if count is None else raw * count.to(raw.dtype)
    norm = raw.new_zeros(num_sets).index_add(0, index, raw)
    return raw / norm.index_select(0, index)

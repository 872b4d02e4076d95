from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from pyg_dim.models.batch_norm import BatchNorm


@pytest.fixture
def settle() -> Callable[[nn.Module], nn.Module]:
    """``settle(model)``: in evaluation mode, with running statistics that are not the initial ones."""

    def settle(model: nn.Module) -> nn.Module:
        for module in model.modules():
            if isinstance(module, BatchNorm):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)
        return model.eval()

    return settle

"""The functions that the kernels are made of, at ordinary and extreme arguments."""

from __future__ import annotations

import ctypes
import importlib
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyg_dim.native.library import call

# The package has a function of that name.
module = importlib.import_module("pyg_dim.native.library")
pytestmark = pytest.mark.usefixtures("kernels")
PROGRAM = """
#include "vectors.h"
#define EACH(NAME, BODY) extern "C" void NAME(T* out, const T* in, int64_t n) { \\
    for (int64_t i = 0; i < n; i += LANES) { Vec x = load(in + i), d; BODY } }
EACH(mish_of, store(out + i, mish(x));)
EACH(mish_again, store(out + i, mish(x, d));)
EACH(mish_slope, mish(x, d); store(out + i, d);)
EACH(exp_of, store(out + i, exp(x));)
EACH(softplus_of, store(out + i, softplus(x));)
EACH(sigmoid_of, store(out + i, sigmoid(x));)
"""
TYPES = {torch.float32: ("float", 4e-7), torch.float64: ("double", 2e-15)}
INF, NAN = float("inf"), float("nan")


@pytest.fixture(scope="module", params=list(TYPES), ids=str)
def functions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    scalar, tolerance = TYPES[request.param]
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "probe.cpp").write_text(PROGRAM)
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler is not None
    arguments = [f"-DSCALAR={scalar}", f"-I{Path(module.__file__).parent}", str(folder / "probe.cpp")]
    probe = ctypes.CDLL(str(module._build(compiler, arguments, folder, "probe")))

    def run(name: str, values: Tensor) -> Tensor:
        padded = torch.zeros((values.numel() + 15) // 16 * 16, dtype=request.param)
        padded[: values.numel()] = values
        out = torch.empty_like(padded)
        call(getattr(probe, name), out, padded, padded.numel())
        return out[: values.numel()]

    return run, request.param, tolerance


def slope(values: Tensor) -> Tensor:
    x = values.clone().requires_grad_()
    F.mish(x).sum().backward()
    return x.grad


PLAIN = {
    "mish_of": F.mish,
    "mish_again": F.mish,
    "mish_slope": slope,
    "exp_of": torch.exp,
    "softplus_of": lambda t: torch.logaddexp(t, torch.zeros_like(t)),
    "sigmoid_of": torch.sigmoid,
}


@pytest.mark.parametrize("name", PLAIN)
def test_to_rounding(functions, name: str) -> None:
    run, dtype, tolerance = functions
    values = torch.cat([torch.linspace(-60, 20, 40001), torch.linspace(-1e-3, 1e-3, 999), torch.zeros(1)]).to(dtype)
    plain = PLAIN[name](values.double())
    # The slope of Mish has a zero near -1.19: nothing is exact there relative to itself.
    scale = plain.abs().clamp(min=1e-2) if name == "mish_slope" else plain.abs()
    assert ((run(name, values) - plain).abs() / scale.clamp(min=1e-30)).max() < 20 * tolerance


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("mish_of", -1e4, 0), ("mish_of", -100, 0), ("mish_of", 0, 0), ("mish_of", 30, 30), ("mish_of", 1e4, 1e4),
        ("mish_of", INF, INF),
        ("mish_slope", -1e4, 0), ("mish_slope", -100, 0), ("mish_slope", 0, 0.6), ("mish_slope", 30, 1),
        ("mish_slope", 1e4, 1),
        ("softplus_of", -1e4, 0), ("softplus_of", -100, 0), ("softplus_of", 30, 30), ("softplus_of", 1e4, 1e4),
        ("softplus_of", INF, INF), ("softplus_of", -INF, 0),
        ("sigmoid_of", -1e4, 0), ("sigmoid_of", -100, 0), ("sigmoid_of", 0, 0.5), ("sigmoid_of", 30, 1),
        ("sigmoid_of", 1e4, 1), ("sigmoid_of", INF, 1), ("sigmoid_of", -INF, 0),
    ],
)  # fmt: skip
def test_extremes(functions, name: str, at: float, value: float) -> None:
    run, dtype, _ = functions
    found = run(name, torch.tensor([at], dtype=dtype)).item()
    assert found == pytest.approx(value, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_nan_stays_nan_whatever_its_bits(functions, name: str) -> None:
    run, dtype, _ = functions
    bits = (
        [0x7FC00000, -0x400000, 0x7FC00001, 0x7F800002, 0x7FC0017F]
        if dtype == torch.float32
        # The third is that of a missing number in R.
        else [0x7FF8000000000000, -0x8000000000000, 0x7FF00000000007A2, 0x7FF8000000000C00]
    )
    values = torch.tensor(bits, dtype=torch.int32 if dtype == torch.float32 else torch.int64).view(dtype)
    assert values.isnan().all()
    assert run(name, values).isnan().all()

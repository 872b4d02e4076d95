from __future__ import annotations

import pytest
import torch

from pyg_dim import native
from pyg_dim.data import CrystalDataset, load_dataset
from pyg_dim.models import MEGNet
from pyg_dim.training import setup
from pyg_dim.training.devices import choose_device, compile_fault, made_resident
from pyg_dim.training.setup import prepare_encoder, prepare_kernels


@pytest.mark.parametrize(
    ("accelerator", "cuda", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("gpu", True, "cuda"), ("cpu", True, "cpu")],
)
def test_a_gpu_is_a_cuda_device(monkeypatch, accelerator, cuda, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    # Apple's are passed over.
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device(accelerator) == expected


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--accelerator gpu needs a CUDA device.*use --accelerator cpu or auto"):
        choose_device("gpu")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("\n  No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1"),
            "No working C++ compiler found",
        ),
        (OSError(2, "No such file or directory"), "[Errno 2] No such file or directory"),
        (ImportError(), "ImportError"),
    ],
)
@pytest.mark.parametrize("when", ["compile", "call", "backward"])
def test_any_error_of_a_compiler_is_a_reason(monkeypatch, error, reason, when):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise error

    def fail(*arguments, **options):
        raise error

    ways = {"compile": fail, "call": lambda function, **options: fail, "backward": lambda function, **o: Broken.apply}
    monkeypatch.setattr(torch, "compile", ways[when])
    assert compile_fault("cpu") == reason


def test_a_compiler_that_works_has_no_fault(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    assert compile_fault("cpu") is None


NO_COMPILER = "torch.compile does not work here: training without it (same numbers, slower): broken"


@pytest.mark.parametrize(
    ("wanted", "device", "changes", "kernels", "compiler", "expected", "tried", "warnings"),
    [
        # What is expected: kernels, torch.compile.
        (True, "cpu", {}, None, None, (True, False), 0, []),
        (True, "cpu", {}, "broken", None, (False, False), 0, []),
        (True, "cpu", {"blocks": 2}, None, None, (True, False), 0, []),
        (True, "cpu", {"value_hidden": [9]}, None, None, (True, True), 1, []),
        (True, "cpu", {"value_hidden": [9]}, None, "broken", (True, False), 1, [NO_COMPILER]),
        (True, "cpu", {"estimator": "info_nce"}, None, None, (True, True), 1, []),
        (True, "cpu", {"critic": "bilinear"}, None, None, (True, True), 1, []),
        (True, "cpu", {"precision": "bf16"}, None, None, (True, True), 1, []),
        (True, "cuda", {}, None, None, (False, True), 1, []),
        (True, "cuda", {}, None, "broken", (False, False), 1, [NO_COMPILER]),
        (False, "cpu", {"blocks": 2}, None, None, (False, False), 0, []),
    ],
)
def test_kernels_serve_where_wanted_and_possible(
    options, monkeypatch, caplog, wanted, device, changes, kernels, compiler, expected, tried, warnings
):
    trials = []
    monkeypatch.setattr(setup, "compile_fault", lambda device: trials.append(device) or compiler)
    monkeypatch.setattr(native, "fault", lambda *what, **widths: kernels)
    precision = changes.get("precision", "32")
    architecture = {name: value for name, value in changes.items() if name != "precision"}
    chosen = options(compile=wanted, precision=precision, encoder=architecture)
    encoder, _ = prepare_encoder(chosen)
    prepare_kernels(chosen, encoder, device)
    assert (encoder.kernels, encoder.compiled) == expected
    assert encoder.local_level.fused == encoder.global_level.fused == expected[0]
    assert trials == [device] * tried
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == warnings


@pytest.mark.parametrize(("device", "changes"), [("cuda", {}), ("cpu", {"compile": False})])
def test_no_kernel_is_looked_for_where_none_is_used(options, monkeypatch, device, changes):
    monkeypatch.setattr(setup, "compile_fault", lambda device: None)
    chosen = options(**{"compile": True, "encoder": {"blocks": 2}} | changes)
    encoder, _ = prepare_encoder(chosen)
    monkeypatch.setattr(native, "fault", lambda *what, **widths: pytest.fail("a kernel was looked for"))
    prepare_kernels(chosen, encoder, device)
    assert not encoder.kernels


def test_an_encoder_that_has_nothing_to_compile_is_spared_the_trial_and_the_notice(options, monkeypatch, caplog):
    tried = []
    monkeypatch.setattr(setup, "compile_fault", tried.append)
    with caplog.at_level("INFO", "pyg_dim"):
        prepare_kernels(options(compile=True), MEGNet(), "cuda")
    assert not tried
    assert not caplog.records


@pytest.mark.parametrize(("times", "resident"), [(2.5, True), (1.5, False)])
def test_crystals_go_to_a_gpu_that_has_room(parquet, monkeypatch, caplog, times, resident):
    dataset = load_dataset(parquet)
    free = int(times * dataset.num_bytes)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10 * free))
    # Without numbers, it stands in for one.
    monkeypatch.setattr(CrystalDataset, "to", lambda self, device, to=CrystalDataset.to: to(self, "meta"))
    caplog.clear()  # of what reading the file said
    with caplog.at_level("INFO", "pyg_dim"):
        placed = made_resident(dataset, torch.device("cuda", 1))
    assert placed.pos.is_meta == resident
    if resident:
        assert not caplog.records
    else:
        assert placed is dataset
        assert "60 crystals take 0.0 GB and cuda:1 has 0.0 GB free: batches are made on the host" in caplog.text


def test_crystals_stay_where_they_are_on_a_cpu(parquet):
    dataset = load_dataset(parquet)
    assert made_resident(dataset, torch.device("cpu")) is dataset

"""Weights files: what comes back, and what is refused before anything is made of it."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from pyg_dim.training import weights
from pyg_dim.training.weights import pack_weights, read_weights, unpack_weights

ABOUT = {"model": "sitenet", "encoder": {"widths": [1, 2], "tolerance": 1e-4, "name": "é"}}
TENSORS = {
    "encoder.a": torch.tensor([[1.5, -2.0]]),
    "encoder.b": torch.tensor(3),
    "encoder.c": torch.linspace(0, 1, 6, dtype=torch.float64).view(2, 3).t(),
}


class Command:
    """What a hostile pickle does when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def with_header(header) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def test_what_is_packed_comes_back_to_the_bit():
    data = pack_weights(ABOUT, TENSORS)
    about, tensors = unpack_weights(data, "here")
    assert about == ABOUT
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)
    assert pack_weights(ABOUT, TENSORS) == data


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan"), torch.zeros(1)])
def test_more_than_plain_values_is_not_written(value):
    with pytest.raises(ValueError, match=r"plain values|not JSON compliant"):
        pack_weights({"model": value}, TENSORS)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    data = pack_weights(ABOUT, TENSORS)
    path = tmp_path / "cut.safetensors"
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"cut\.safetensors (is not a safetensors file|is damaged)"):
            read_weights(path)


def test_flipped_bits_are_refused_or_change_numbers_only():
    data = pack_weights(ABOUT, TENSORS)
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for place in torch.randint(len(data), (300,), generator=generator).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(torch.randint(8, (), generator=generator))
        try:
            unpack_weights(bytes(damaged), "x")
        except ValueError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a safetensors file"),
        (b"PK\x03\x04 a zip archive, as torch.save writes it", "not a safetensors file"),
        ((2**63).to_bytes(8, "little") + b"{}", "not a safetensors file"),
        (with_header(b" " * (weights.MAX_HEADER + 1)), "not a safetensors file"),
        (with_header(b"[" * 100_000), "its header is not JSON"),
        (with_header([1]), "its header is no JSON object"),
        (with_header({}), "of another program"),
        (with_header({"__metadata__": {"format": "pt"}}), "of another program"),
        (with_header({"__metadata__": {"pyg_dim": 1}}), "of another program"),
        (with_header({"__metadata__": {"pyg_dim": "{"}}), "'pyg_dim' of its header is not JSON"),
        (with_header({"__metadata__": {"pyg_dim": '{"a": NaN}'}}), "NaN is no number of JSON"),
        (
            with_header(
                {
                    "__metadata__": {"pyg_dim": "{}"},
                    "a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
                }
            ),
            "damaged or truncated",
        ),
        (
            with_header(
                {"__metadata__": {"pyg_dim": "{}"}, "a": {"dtype": "EXE", "shape": [], "data_offsets": [0, 0]}}
            ),
            "damaged or truncated",
        ),
    ],
)
def test_foreign_and_hostile_files_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        unpack_weights(data, "x")


def test_a_pickle_under_this_name_is_not_run(tmp_path):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(pickle.dumps(Command(tmp_path / "written")))
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_weights(path)
    torch.save({"a": Command(tmp_path / "written")}, path)
    with pytest.raises(ValueError, match="not a safetensors file"):
        read_weights(path)
    assert not (tmp_path / "written").exists()


def test_files_beyond_the_limit_and_unreadable_ones_are_named(tmp_path, monkeypatch):
    path = tmp_path / "large.safetensors"
    path.write_bytes(pack_weights(ABOUT, TENSORS))
    monkeypatch.setattr(weights, "MAX_FILE", 100)
    with pytest.raises(ValueError, match=r"large\.safetensors has \d+ bytes; weights files of up to 100"):
        read_weights(path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot read the weights"):
        read_weights(tmp_path)

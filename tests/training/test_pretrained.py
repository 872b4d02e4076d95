"""Encoders by name, and those that come with the package."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import pyg_dim
from pyg_dim import models
from pyg_dim.training import export, load_encoder, pretrained
from pyg_dim.training.pretrained import SHIPPED, locate, shipped_encoders

LARGEST = 8 * 2**20
"""Bytes of what comes with the package: a few MB."""


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder with two encoders in place of that of the package."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("second", "first"):
        export(models.build("sitenet", supercell_sites=8), folder / f"{name}.safetensors")
    monkeypatch.setattr(pretrained, "SHIPPED", folder)
    return folder


def test_an_encoder_is_loaded_by_its_name(shipped, tmp_path, monkeypatch):
    assert list(shipped_encoders()) == ["first", "second"]
    encoder = pyg_dim.load("first")
    assert isinstance(encoder, models.SiteNet)
    expected = load_encoder(shipped / "first.safetensors").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in encoder.state_dict().items())
    # A name wins over a file of the same name, which has to be told apart.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first").write_text("a file")
    assert locate("first") == shipped / "first.safetensors"
    assert locate("./first").resolve() == tmp_path / "first"


def test_unknown_names_are_told_those_there_are(shipped):
    with pytest.raises(FileNotFoundError, match=r"no encoder 'third': .* package are first, second; else give a path"):
        pyg_dim.load("third")


def test_paths_are_left_to_those_who_read_them(shipped, tmp_path):
    for path in ("first.ckpt", "folder/first", tmp_path / "first"):
        assert str(locate(path)) == str(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        pyg_dim.load("absent.safetensors")


def test_every_encoder_of_the_package_has_a_card():
    for path in SHIPPED.glob("*.safetensors"):
        assert path.with_suffix(".md").is_file(), path
    for card in SHIPPED.glob("*.md"):
        assert card.with_suffix(".safetensors").is_file(), card


@pytest.mark.parametrize("name", shipped_encoders() or [pytest.param("", marks=pytest.mark.skip("none is shipped"))])
def test_an_encoder_of_the_package(name):
    path = shipped_encoders()[name]
    assert path.stat().st_size < LARGEST
    card = path.with_suffix(".md").read_text()
    assert name in card
    assert "licence" in card.lower()
    encoder = pyg_dim.load(name)
    assert encoder.readout_channels(encoder.default_readout) > 0


def test_the_public_names_need_nothing_until_they_are_used():
    program = """
import sys
import pyg_dim
assert {"load", "export", "push_to_hub", "CrystalEmbedder"} <= set(dir(pyg_dim))
assert not {"sklearn", "safetensors", "lightning", "pymatgen"} & set(sys.modules)
pyg_dim.load
assert not {"lightning", "pymatgen", "ase", "huggingface_hub"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        pyg_dim.nothing  # noqa: B018

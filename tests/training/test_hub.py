"""Encoders on a hub, with a client of our own in the place of huggingface_hub."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import pyg_dim
from pyg_dim import models
from pyg_dim.training import export


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Folder of repositories; ``calls`` has what the client was asked for."""
    calls: list[tuple] = []

    def hf_hub_download(repo_id, filename, revision=None):
        calls.append(("get", repo_id, filename, revision))
        path = tmp_path / "hub" / repo_id / filename
        if not path.exists():
            raise OSError(f"404 Client Error.\nRepository Not Found for url: {repo_id}")
        return str(path)

    class HfApi:
        def create_repo(self, repo_id, *, private=None, exist_ok=False):
            calls.append(("create", repo_id, private, exist_ok))
            if repo_id.startswith("other/"):
                raise OSError("403 Forbidden")
            (tmp_path / "hub" / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
            for name in allow_patterns:
                shutil.copy(Path(folder_path) / name, tmp_path / "hub" / repo_id / name)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=hf_hub_download, HfApi=HfApi))
    return SimpleNamespace(folder=tmp_path / "hub", calls=calls)


def test_what_is_pushed_can_be_loaded(hub):
    encoder = models.build("sitenet", supercell_sites=8)
    address = pyg_dim.push_to_hub(encoder, "me/salts", licence="CC-BY-4.0", about="Of salts.", private=True)
    assert address == "hf://me/salts"
    assert hub.calls == [("create", "me/salts", True, True)]
    again = pyg_dim.load(address)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert sorted(path.name for path in (hub.folder / "me/salts").iterdir()) == ["README.md", "model.safetensors"]
    card = (hub.folder / "me/salts/README.md").read_text()
    assert card.startswith("---\nlibrary_name: pyg-dim\n")
    assert 'license: "cc-by-4.0"\n---\n\n# salts\n' in card
    assert 'pyg_dim.load("hf://me/salts")' in card
    pyg_dim.load("hf://me/salts@v1")
    assert hub.calls[-2:] == [
        ("get", "me/salts", "model.safetensors", None),
        ("get", "me/salts", "model.safetensors", "v1"),
    ]


def test_files_are_pushed_and_addresses_too(hub, tmp_path):
    export(models.build("sitenet", supercell_sites=8), tmp_path / "e.safetensors", licence="MIT")
    pyg_dim.push_to_hub(tmp_path / "e.safetensors", "hf://me/e")
    assert 'license: "mit"' in (hub.folder / "me/e/README.md").read_text()
    assert (hub.folder / "me/e/model.safetensors").read_bytes() == (tmp_path / "e.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["salts", "a/b/c", "../up/x", "me/", "", "me/..", "me/sa lts"])
def test_what_is_no_repository_is_refused_before_the_hub_is_asked(hub, name):
    with pytest.raises(ValueError, match="is no repository: give hf://user/repository"):
        pyg_dim.load(f"hf://{name}")
    with pytest.raises(ValueError, match="is no repository"):
        pyg_dim.push_to_hub(models.build("sitenet"), name)
    assert not hub.calls


def test_what_the_hub_says_is_one_line(hub):
    with pytest.raises(ValueError, match=r"^cannot get hf://me/absent: 404 Client Error\.$"):
        pyg_dim.load("hf://me/absent")
    with pytest.raises(ValueError, match=r"^cannot write to hf://other/x: 403 Forbidden$"):
        pyg_dim.push_to_hub(models.build("sitenet"), "other/x")


def test_foreign_files_of_a_hub_are_refused(hub):
    (hub.folder / "me/evil").mkdir(parents=True)
    (hub.folder / "me/evil/model.safetensors").write_bytes(b"cos\nsystem\n(S'touch x'\ntR.")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        pyg_dim.load("hf://me/evil")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: pyg_dim.load("hf://me/x"), lambda: pyg_dim.push_to_hub(models.build("sitenet"), "me/x")):
        with pytest.raises(ValueError, match=r'huggingface_hub, which is not installed: pip install "pyg-dim\[hub\]"'):
            call()

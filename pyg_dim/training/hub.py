"""Encoders on the Hugging Face hub, through the optional package huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Final

ADDRESS: Final = "hf://"
"""What addresses begin with."""
FILE: Final = "model.safetensors"
"""Name of the weights file in a repository."""
CARD: Final = "README.md"
"""Name of the model card in a repository."""

_REPOSITORY: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def download(address: str) -> Path:
    """Get the weights file of a repository into the cache of huggingface_hub; nothing else of it is fetched.

    Args:
        address: ``hf://user/repository``, or with ``@revision`` behind it.

    Returns:
        The file.

    Raises:
        ValueError: no such address or repository, no network, or huggingface_hub is not installed.
    """
    repository, _, revision = address.removeprefix(ADDRESS).partition("@")
    _require_repository(repository)
    hub = _hub()
    try:
        return Path(hub.hf_hub_download(repository, FILE, revision=revision or None))
    except Exception as error:  # the network, the hub and the disk fail with errors of many types
        raise ValueError(f"cannot get {address}: {_first_line(error)}") from error


def upload(folder: Path, repository: str, private: bool) -> str:
    """Put the files of a folder into a repository, which is made where it is not there yet, in one commit.

    Args:
        folder: holds :data:`FILE` and :data:`CARD`.
        repository: ``user/repository``.
        private: whether a new repository is private.

    Returns:
        Address for :func:`download`.

    Raises:
        ValueError: no name of a repository, no right to write there, no network, or huggingface_hub is not installed.
    """
    _require_repository(repository)
    client = _hub().HfApi()
    try:
        client.create_repo(repository, private=private, exist_ok=True)
        client.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[FILE, CARD],
            commit_message="Upload an encoder of pyg_dim",
        )
    except Exception as error:  # see above
        raise ValueError(f"cannot write to {ADDRESS}{repository}: {_first_line(error)}") from error
    return ADDRESS + repository


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(
            f'{ADDRESS} needs huggingface_hub, which is not installed: pip install "pyg-dim[hub]"'
        ) from error
    return huggingface_hub


def _require_repository(name: str) -> None:
    if not _REPOSITORY.fullmatch(name):
        raise ValueError(f"{name!r} is no repository: give {ADDRESS}user/repository")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

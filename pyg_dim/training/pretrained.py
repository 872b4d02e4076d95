"""Where encoders are found: by the name of one that comes with the package, by a path, or on a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pyg_dim.training.hub import ADDRESS, download
from pyg_dim.training.weights import WEIGHTS

SHIPPED: Final = Path(__file__).parents[1] / "weights"
"""Folder of the encoders that come with the package, each with a model card of the same name beside it."""


def shipped_encoders() -> dict[str, Path]:
    """The encoders that come with the package.

    Returns:
        Name -> weights file.
    """
    return {path.stem: path for path in sorted(SHIPPED.glob(f"*{WEIGHTS}"))}


def locate(source: str | Path) -> Path:
    """Find the file of an encoder.

    Args:
        source: the name of one that comes with the package; ``hf://user/repository`` (or ``...@revision``), which is
            downloaded unless it was before; or a path. A name wins over a file that is called alike: give that as
            ``./name``.

    Returns:
        The file; of a path, as it is.

    Raises:
        FileNotFoundError: what looks like a name is neither one nor a file; the message lists the names there are.
        ValueError: the hub does not give it.
    """
    text = str(source)
    if text.startswith(ADDRESS):
        return download(text)
    path = Path(source)
    # The text, since a Path has lost the "./" in front.
    if text == path.name and not path.suffix:
        shipped = shipped_encoders()
        if text in shipped:
            return shipped[text]
        if not path.exists():
            known = ", ".join(shipped) or "none in this version"
            raise FileNotFoundError(
                f"there is no encoder {text!r}: encoders that come with the package are {known}; else give a path "
                f"(.ckpt, {WEIGHTS}) or {ADDRESS}user/repository"
            )
    return path

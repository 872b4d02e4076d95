"""Write files in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A place to write to, which takes the place of a file once the block is done.

    The place lies beside the file, so that it takes its place at once: whoever reads meanwhile, and whoever comes after
    a program that was killed, sees the old file or the new one. Where the block fails, the old file stays.

    Args:
        path: file to write or replace.

    Yields:
        Path to write to.
    """
    path = Path(path)
    # No ending that a folder is searched for: a program that is killed leaves it.
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

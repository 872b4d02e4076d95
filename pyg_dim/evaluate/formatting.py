"""Numbers, rows and files of reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pyg_dim.data.replacing import replacing


def number(value: float, digits: int = 3) -> str:
    """Write a number with a fixed number of significant digits, below a million without a power of ten.

    Args:
        value: The number.
        digits: Significant digits.

    Returns:
        The text, empty for NaN.
    """
    if math.isnan(value):
        return ""
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"{float(text):.0f}" if "e+" in text and abs(float(text)) < 1e6 else text


def markdown_row(cells: Sequence[str]) -> str:
    """Write a row of a Markdown table.

    Args:
        cells: Texts of one line each.

    Returns:
        The row, without an end of line.
    """
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def replace_file(path: Path, contents: str | bytes) -> None:
    """Write a file in one step: a reader sees the old one or the new one.

    Args:
        path: The file.
        contents: Text, written as UTF-8, or bytes.
    """
    with replacing(path) as file:
        file.write_bytes(contents.encode() if isinstance(contents, str) else contents)


def fill(page: str, name: str, text: str) -> str:
    """Put a text between the markers of a page.

    Args:
        page: A Markdown page with ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``, each on a line of its own.
        name: Of the place.
        text: What stands between them afterwards, instead of what is there.

    Returns:
        The page; all else is as it was.

    Raises:
        ValueError: The markers are not there, once each and in this order.
    """
    begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed) or begin in rest or end in before + after:
        raise ValueError(
            f"no place for the table of {name!r}: the page needs the lines {begin.strip()} and {end.strip()}"
        )
    return f"{before}{begin}\n{text}\n\n{end}{after}"

"""Tables and pictures of the documentation, from the JSON of the benchmarks alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pyg_dim.evaluate.formatting import fill, markdown_row, number, replace_file

PICTURES = "pictures"
SCALING = "scaling_supercell.png"


def cell(value: Any) -> str:
    """Text of a cell: numbers with three digits, a spread as median [lower, upper quartile]."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        middle = number(value["median"])
        lower, upper = number(value["lower"]), number(value["upper"])
        return middle if lower == upper else f"{middle} [{lower}, {upper}]"
    return str(value) if isinstance(value, int) else number(value)


def several(count: int, what: str) -> str:
    """``1 core``, ``2 cores``."""
    return f"{count} {what}" + ("" if count == 1 else "s")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table; the columns are those of all rows, and texts stand left."""
    titles = list(dict.fromkeys(title for row in rows for title in row))
    left = {title for title in titles if any(isinstance(row.get(title), str) for row in rows)}
    lines = [markdown_row(titles), markdown_row(["---" if title in left else "---:" for title in titles])]
    return "\n".join([*lines, *(markdown_row([cell(row.get(title)) for title in titles]) for row in rows)])


def block(result: Mapping[str, Any]) -> str:
    """All that the documentation shows of one result, Markdown.

    Args:
        result: from :func:`results.read`.

    Returns:
        Command, machine, settings, tables and notes.
    """
    machine, settings = result["machine"], result["settings"]
    facts = [machine["gpu"]] if "gpu" in machine else []
    facts += [machine["processor"], several(machine["cores"], "core"), several(machine["threads"], "thread")]
    facts += [f"torch {machine['torch']}", f"load {machine['load before']} before"]
    shown = {name.replace("_", " "): value for name, value in settings.items() if value not in (None, [], False)}
    listed = [f"{name} {', '.join(map(str, v)) if isinstance(v, list) else v}" for name, v in shown.items()]
    said = ". ".join(part for part in (", ".join(facts), "; ".join(listed)) if part)
    parts = [f"```shell\n{result['command']}\n```", f"{result['date']}: {said}."]
    for part in result["tables"]:
        parts += [part["title"]] if part["title"] else []
        parts.append(table(part["rows"]))
    parts += [result["printed"]] if result["printed"] else []
    parts += ["\n".join(f"- {note}" for note in result["notes"])] if result["notes"] else []
    return "\n\n".join(parts)


def render(results: Sequence[Mapping[str, Any]], page: Path) -> None:
    """Write results into a page, and the pictures that belong to them beside it.

    Args:
        results: from :func:`results.read`.
        page: a Markdown page with the markers of each, see :func:`pyg_dim.evaluate.formatting.fill`; written in one
            step.

    Raises:
        ValueError: the page has no place for one of them.
    """
    text = page.read_text(encoding="utf-8")
    for result in results:
        shown = block(result)
        if result["benchmark"] == "supercell":
            shown += f"\n\n![Cost of a crystal against its pairs]({PICTURES}/{SCALING})"
            (page.parent / PICTURES).mkdir(exist_ok=True)
            draw_scaling(result, page.parent / PICTURES / SCALING)
        text = fill(text, result["benchmark"], shown)
    replace_file(page, text)


def draw_scaling(result: Mapping[str, Any], path: Path) -> None:
    """Draw what a crystal costs against its pairs, beside lines of slope one through the first point of each variant.

    Args:
        result: of the benchmark "supercell".
        path: PNG file.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    points_of: dict[str, list[tuple[float, float]]] = {}
    for row in result["tables"][0]["rows"]:
        point = row["pairs a crystal"], 1e3 / row["crystals/s"]["median"]
        points_of.setdefault(row["variant"], []).append(point)
    for variant, points in points_of.items():
        pairs, cost = zip(*points, strict=True)
        (line,) = axes.loglog(pairs, cost, "o-", label=variant)
        axes.loglog(pairs, [cost[0] * p / pairs[0] for p in pairs], ":", color=line.get_color(), linewidth=1)
    axes.set_xlabel("pairs of a crystal: primitive sites × supercell sites")
    axes.set_ylabel("ms a crystal")
    axes.set_title("A training step; dotted: in proportion to the pairs")
    axes.legend(frameon=False)
    axes.grid(visible=True, which="both", alpha=0.3)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)

import logging

from pyg_dim.data.report import ImportReport, LeftOut, NotNumbers


def test_report_counts_by_reason_and_names_examples():
    left_out = [LeftOut(f"c{k}", "too large", str(60 + k)) for k in range(5)] + [LeftOut("x", "broken")]
    report = ImportReport("here", 10, left_out, ["a remark"])
    assert report.num_kept == 4
    assert report.counts() == {"too large": 5, "broken": 1}
    text = str(report)
    assert "here: 4 of 10 crystals kept" in text
    assert "too large: 5 (c0 (60), c1 (61), c2 (62), and 2 more)" in text
    assert "broken: 1 (x)" in text
    assert "a remark" in text


def test_crystals_left_out_are_a_warning(caplog):
    with caplog.at_level(logging.INFO, logger="pyg_dim.data.report"):
        ImportReport("good", 1).log()
        ImportReport("bad", 1, [LeftOut("x", "broken")]).log()
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]


def test_parts_add_up():
    first = ImportReport(
        "a", 3, [LeftOut("x", "broken")], ["a note"], 1, {"odd": ["p"]}, {"gap": NotNumbers(1, ["p: ?"])}
    )
    second = ImportReport("b", 2, [LeftOut("y", "large")], [], 1, {"odd": ["q"]}, {"gap": NotNumbers(4, ["q: !"] * 3)})
    total = ImportReport("all")
    for part in (first, second):
        total.add(part)
    assert str(total).splitlines() == [
        "all: 3 of 5 crystals kept",
        "  left out, broken: 1 (x)",
        "  left out, large: 1 (y)",
        "  2 cells reduced to the primitive cell",
        "  odd: 2 (p, q)",
        "  label gap: 5 values that are no number, treated as missing (p: ?, q: !, q: !, and 2 more)",
        "  a note",
    ]
    # The parts themselves stay as they were.
    assert first.remarks == {"odd": ["p"]}
    assert first.not_numbers["gap"].count == 1

import logging

from pyg_dim.data.report import ImportReport, LeftOut


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

from __future__ import annotations

import pytest

from pyg_dim.experiments.provenance import TOGETHER, checksum, keep_to


def test_the_same_settings_pass_and_others_are_refused(tmp_path):
    path = tmp_path / "study.json"
    keep_to(path, {"data": "a.parquet", "scale": {"draws": 20}, "sizes": (1, 2)})
    before = path.read_text()
    keep_to(path, {"data": "a.parquet", "scale": {"draws": 20}, "sizes": [1, 2]})
    assert path.read_text() == before
    with pytest.raises(ValueError, match=r'with data "a.parquet", this one has "b.parquet".*choose another --out'):
        keep_to(path, {"data": "b.parquet"})
    keep_to(path, {"checkpoint": "00ff"})
    with pytest.raises(ValueError, match="with checkpoint"):
        keep_to(path, {"checkpoint": "11ff"})


def test_what_differs_is_told_without_its_checksum(tmp_path):
    path, sums = tmp_path / "study.json", {"crystals": "0a", "labels": "0b", TOGETHER: "0c"}
    keep_to(path, {"seed": 0}, sums)
    keep_to(path, {"seed": 0}, sums)
    with pytest.raises(ValueError, match=r"tells of a study that differs in crystals and labels: rows of both"):
        keep_to(path, {"seed": 0}, {"crystals": "1a", "labels": "1b", TOGETHER: "1c"})
    with pytest.raises(ValueError, match=f"differs in {TOGETHER}:"):
        keep_to(path, {}, {TOGETHER: "1c"})


def test_a_checksum_tells_files_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # The first digits of the SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    assert checksum(tmp_path / "a") == "ba7816bf8f01cfea"

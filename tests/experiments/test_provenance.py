from __future__ import annotations

import pytest

from pyg_dim.experiments.provenance import checksum, keep_to


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


def test_a_checksum_tells_files_apart(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    # The first digits of the SHA-256 of "abc" (FIPS 180-2, appendix B.1).
    assert checksum(tmp_path / "a") == "ba7816bf8f01cfea"

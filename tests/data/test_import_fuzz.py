"""Broken inputs: no crash, no input that is read for long, and a reason for everything that is left out.

``python tests/data/fuzz.py`` runs 2000 of them with limits on time and memory.
"""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("import_fuzz", Path(__file__).with_name("fuzz.py"))
fuzz = importlib.util.module_from_spec(SPEC)
sys.modules["import_fuzz"] = fuzz
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("portion", range(4))
def test_broken_inputs(portion, tmp_path):
    results = Counter()
    for seed in range(70 * portion, 70 * (portion + 1)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        results[fuzz.try_input(seed, folder)[1]] += 1
    assert set(results) <= {"read", "nothing left", "refused"}
    # The damage is neither harmless nor total.
    assert min(results["read"], results["refused"] + results["nothing left"]) > 10

import pytest
import torch

from pyg_dim.data.fingerprints import FINGERPRINTS, fingerprint_table
from pyg_dim.data.magpie import magpie_features
from pyg_dim.data.radial import radial_fingerprint


def test_kinds_are_put_side_by_side(dataset):
    magpie = magpie_features(dataset.z, dataset.ptr)
    radial = radial_fingerprint(dataset.z, dataset.pos, dataset.cell, dataset.ptr)
    assert FINGERPRINTS == ("magpie", "radial")
    for kinds, expected in (
        (["magpie"], magpie),
        (("radial",), radial),
        (["radial", "magpie"], torch.cat([radial, magpie], dim=1)),
    ):
        table = fingerprint_table(dataset, kinds)
        assert table.dtype == torch.float64
        assert torch.equal(table, expected)


def test_rows_are_those_of_the_data_set(dataset):
    rows = torch.tensor([7, 0, 3])
    table = fingerprint_table(dataset, FINGERPRINTS)
    assert table.shape == (12, 145 + 48)
    assert table.isfinite().all()
    torch.testing.assert_close(fingerprint_table(dataset.subset(rows), FINGERPRINTS), table[rows], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["soap"], "unknown fingerprint 'soap'; known: magpie, radial"),
        ([], "each once, of magpie, radial; got \\[\\]"),
        (["magpie", "magpie"], "each once, of magpie, radial; got \\['magpie', 'magpie'\\]"),
    ],
)
def test_bad_kinds_are_named(dataset, kinds, message):
    with pytest.raises(ValueError, match=message):
        fingerprint_table(dataset, kinds)

import numpy as np
import pytest
import torch

from pyg_dim.data.elements import (
    FILLS,
    MAX_Z,
    NUM_FEATURES,
    PROPERTIES,
    SCALERS,
    atomic_numbers,
    element_property,
    element_table,
    site_features,
    symbols,
    write_element_table,
)


def test_table_is_what_the_command_writes(tmp_path):
    written = tmp_path / "elements.csv"
    write_element_table(written)
    rows = [line.split(",")[1:9] for line in written.read_text().splitlines() if not line.startswith(("#", "symbol"))]
    assert len(rows) == MAX_Z
    torch.testing.assert_close(
        element_table()[1:],
        torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64),
        rtol=1e-9,
        atol=0,
    )
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_table_agrees_with_pymatgen_where_pymatgen_has_a_value():
    from pymatgen.core import Element

    of_pymatgen = {
        "atomic_weight": "atomic_mass",
        "row": "row",
        "column": "group",
        "first_ionization_energy": "ionization_energy",
        "electronegativity": "X",
        "atomic_radius": "atomic_radius",
        "density": "density_of_solid",
    }
    compared = 0
    for z in range(1, MAX_Z + 1):
        element = Element.from_Z(z)
        assert symbols()[z] == element.symbol
        assert atomic_numbers()[element.symbol] == z
        for name, attribute in of_pymatgen.items():
            if element.symbol in FILLS.get(name, {}):
                continue
            assert element_property(name, torch.tensor([z])).item() == pytest.approx(
                float(getattr(element, attribute)), rel=1e-9
            )
            compared += 1
    assert compared == MAX_Z * len(of_pymatgen) - sum(len(fills) for fills in FILLS.values())


def test_every_property_of_every_element_is_a_positive_number():
    assert torch.isfinite(element_table()).all()
    assert (element_table()[1:] > 0).all()
    assert (element_table()[0] == 0).all()


def test_agrees_with_the_original_site_features(shared):
    fixture = np.load(shared("fixtures/sitenet_dim.npz"))
    z, reference = torch.from_numpy(fixture["in/atomic_numbers"]), torch.from_numpy(fixture["in/site_features_raw"])
    table = element_table()[z]
    for k, name in enumerate(PROPERTIES):
        # The original numbers went through single precision; its ionization energies are of an older table.
        tolerance = 3e-5 if name == "first_ionization_energy" else 1e-7
        same = (z != atomic_numbers()["Ir"]) if name == "density" else torch.ones_like(z, dtype=torch.bool)
        torch.testing.assert_close(table[same, k], reference[same, k], rtol=tolerance, atol=0, msg=name)
    features = site_features(z, torch.zeros(len(z)), torch.float64)
    others = [0, 1, 2, 3, 5, 6, 8]
    torch.testing.assert_close(
        features[:, others], torch.from_numpy(fixture["in/site_features"])[:, others], rtol=1e-7, atol=1e-12
    )


def test_site_features_scale_the_table_and_append_the_oxidation_state():
    z, oxidation = torch.tensor([8, 26, 8]), torch.tensor([-2.0, 3.0, -1.0])
    features = site_features(z, oxidation)
    assert features.shape == (3, NUM_FEATURES)
    assert features.dtype == torch.float32
    torch.testing.assert_close(
        features[:, :8], (element_table()[z] * torch.tensor(SCALERS, dtype=torch.float64)).float()
    )
    torch.testing.assert_close(features[:, 8], oxidation)


def test_unknown_property_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="electronegativity"):
        element_property("colour", torch.tensor([1]))


def test_deuterium_is_hydrogen():
    assert atomic_numbers()["D"] == atomic_numbers()["T"] == 1

import subprocess
import sys

import pytest

import pyg_dim.data


def test_public_names_are_there_and_listed():
    for name in pyg_dim.data.__all__:
        assert getattr(pyg_dim.data, name).__name__ == name
        assert getattr(pyg_dim.data, name).__module__.startswith("pyg_dim.data.")
    assert set(pyg_dim.data.__all__) <= set(dir(pyg_dim.data))
    assert "__name__" in dir(pyg_dim.data)


def test_an_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match=r"'pyg_dim\.data' has no attribute 'loud_dataset'"):
        pyg_dim.data.loud_dataset  # noqa: B018
    with pytest.raises(ImportError, match="loud_dataset"):
        from pyg_dim.data import loud_dataset  # noqa: F401


def test_the_package_loads_no_module_before_it_is_used():
    """``python -m pyg_dim.data.elements`` warns if the package has already loaded that module."""
    program = (
        "import sys, pyg_dim.data\n"
        "assert set(pyg_dim.data.__all__) <= set(dir(pyg_dim.data))\n"
        "loaded = sorted(name for name in sys.modules if name.startswith('pyg_dim.data.'))\n"
        "assert not set(loaded) - {'pyg_dim.data.keys'}, loaded\n"
        "from pyg_dim.data import *\n"
        "assert split is sys.modules['pyg_dim.data.splits'].split\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr

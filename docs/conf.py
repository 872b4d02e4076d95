"""Sphinx configuration; build with ``sphinx-build -W -b html docs docs/_build``."""

from pyg_dim import __version__

project = "pyg_dim"
author = "The pyg_dim developers"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"pyg_dim {release}"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

nitpicky = True  # a reference without a target is a warning
# Types of other libraries, whose pages a build would have to fetch, and of kernels, which are no part of the API.
nitpick_ignore_regex = [("py:(class|exc)", r"(?!pyg_dim\.).*|pyg_dim\.native\..*"), ("py:obj", r"typing\..*")]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
# Attributes as fields of their class, which autodoc lists anyway, and not as entries of their own beside it.
napoleon_use_ivar = True
# What a function returns is described in words here, not by a type before a colon.
napoleon_use_rtype = False

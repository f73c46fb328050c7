"""Build the documentation: make docs."""

import xloader

project = "xloader"
author = "the xloader developers"
release = version = xloader.__version__
extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
exclude_patterns = ["_build"]
html_theme = "furo"
numpydoc_show_class_members = False
autodoc_typehints = "none"

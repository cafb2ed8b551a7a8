# SPDX-FileCopyrightText: the lightning_crmt authors
# SPDX-License-Identifier: Apache-2.0
"""How Sphinx makes the site: ``make docs``."""

import sys
from pathlib import Path

from lightning_crmt.version import __version__

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "lightning_crmt"
author = "the lightning_crmt authors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "native_math",
    "repository_files",
    "public_names",
]
exclude_patterns = ["_build"]
nitpicky = True
# Of matplotlib and torch: named for type checkers only.
nitpick_ignore = [("py:class", name) for name in ("Figure", "Axes", "QuadMesh")] + [("py:exc", "UserError")]

# Pages
html_theme = "furo"
html_title = "lightning_crmt"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4

# Notebooks run in every build; one that fails, fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds for a cell: a machine may be busy
nb_merge_streams = True
nb_execution_in_temp = True

# Reference
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True

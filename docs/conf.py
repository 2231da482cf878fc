"""How the site is built: `make docs`. Pages that have code cells are run, and an error or a warning ends the build."""

from __future__ import annotations

import socket
from importlib.metadata import version as version_of

import sphinx_autosummary_accessors

import xr_avocado  # noqa: F401  (puts ds.avocado on xarray.Dataset, which autodoc looks up)

project = "xr_avocado"
author = "The xr_avocado developers"
copyright = f"2026, {author}"
release = version = version_of("xr-avocado")

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_autosummary_accessors",
    "sphinx_design",
]
exclude_patterns = ["_build", "jupyter_execute", "**.ipynb_checkpoints"]
templates_path = [sphinx_autosummary_accessors.templates_path]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_merge_streams = True

autosummary_generate = True
autodoc_typehints = "none"  # The signature has them; numpydoc's text does not repeat them.
autodoc_member_order = "bysource"
numpydoc_show_class_members = False


def reachable(host: str) -> bool:
    """Say whether there is a network: without one the site still builds, only its links into other projects are missing."""
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return False
    return True


intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "numpy": ("https://numpy.org/doc/stable", None),
    "pandas": ("https://pandas.pydata.org/docs", None),
    "xarray": ("https://docs.xarray.dev/en/stable", None),
    "dask": ("https://docs.dask.org/en/stable", None),
    "anndata": ("https://anndata.readthedocs.io/en/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
    "pyranges": ("https://pyranges.readthedocs.io/en/latest", None),
}
if not reachable("docs.python.org"):
    intersphinx_mapping = {}
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "sphinx_book_theme"
html_title = "xr_avocado"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {"show_toc_level": 2, "use_download_button": True, "home_page_in_toc": False}

"""The documentation site: `sphinx-build -W --keep-going -n -b html docs docs/_build/html`, which needs no network."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import assay  # noqa: E402
import site_pages  # noqa: E402

site_pages.write_all(DOCS / "generated")

project, author = "Assay", "The Assay authors"
version = release = assay.__version__
project_copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinx_design", "site_pages.sphinx_hooks"]
exclude_patterns = ["_build", "site_pages", "generated/rules.md"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are run by the tests, and committed with what they gave
nb_merge_streams = True
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
copybutton_exclude = ".linenos, .gp, .go"
nitpick_ignore_regex = [(r"py:.*", r"(?!assay\.).*"), (r"py:.*", r"assay\.(\w+\.)*_.*")]

html_theme = "pydata_sphinx_theme"
html_title = "Assay"
html_static_path = ["_static"]
html_css_files = ["assay.css"]
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}
toc_object_entries_show_parents = "hide"
html_theme_options = {
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}

"""Sphinx settings of the reading site, which build.py makes out of build/site-source.

Formulas become MathML while building, so that reading needs neither a script from
elsewhere nor a network. Notebooks are shown as they are stored; nothing is run.
"""

from docutils import nodes
from latex2mathml.converter import convert

project = html_title = "Build a large language model by hand"
language = "en"
extensions = ["myst_nb", "sphinx.ext.githubpages"]
source_suffix = {".ipynb": "myst-nb", ".md": "myst-nb"}

nb_execution_mode = "off"
nb_merge_streams = True
nb_code_prompt_show = "Show the {type}"
nb_code_prompt_hide = "Hide the {type}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_static_path = ["static", "../build/site-static"]
html_css_files = ["site.css", "explore.css"]
html_js_files = ["site.js", ("explore.js", {"defer": "defer"})]
html_show_copyright = html_show_sphinx = html_copy_source = html_use_index = False
html_math_renderer = "mathml"


def write_inline(translator, node) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def write_block(translator, node) -> None:
    formula = convert(node.astext(), display="block")
    translator.body.append(f'<div class="formula" tabindex="0">{formula}</div>')
    raise nodes.SkipNode


def setup(app) -> dict:
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    return {"parallel_read_safe": True}

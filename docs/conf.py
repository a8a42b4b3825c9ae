"""How Sphinx builds the documentation: ``make docs``. Needs no network."""

import configparser
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / '_ext')]

_metadata = configparser.ConfigParser()
_metadata.read(ROOT / 'setup.cfg', encoding='utf-8')

project = _metadata['metadata']['name']
author = _metadata['metadata']['author']
version = release = _metadata['metadata']['version']
project_copyright = author

extensions = ['sphinx.ext.autodoc', 'interfaces']
# layers.rst is a part of layout.rst, and what tests/test_architecture.py reads.
exclude_patterns = ['_ext', 'contributing/layers.rst']
highlight_language = 'python'
add_module_names = False
autodoc_member_order = 'bysource'
python_display_short_literal_types = True
python_maximum_signature_line_length = 80
toc_object_entries = False

html_theme = 'furo'
html_title = f'{project} {release}'
html_static_path = ['_static']
html_css_files = ['style.css']
html_copy_source = False
html_show_sourcelink = False

"""README.rst, CHANGES.rst and the pages below docs/: their text, their examples, the parts of them
that are generated.

docutils alone reads them, so that ``make test`` needs no Sphinx; ``make docs`` is the build proper.
What Sphinx adds to the markup is known here by name.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import docutils.core
import docutils.nodes
from docutils.parsers.rst import Directive, directives, roles

from pyramid_sendmail.settings.table import table_rows

__all__ = [
    'CHANGES',
    'DOCS',
    'PAGES',
    'README',
    'ROOT',
    'SETTINGS',
    'Block',
    'all_blocks',
    'blocks',
    'document',
    'in_section',
    'page_name',
    'sections',
    'settings_list',
    'with_settings',
]

ROOT = Path(__file__).parents[2]
README = ROOT / 'README.rst'
CHANGES = ROOT / 'CHANGES.rst'
DOCS = ROOT / 'docs'
SETTINGS = DOCS / 'reference' / 'settings.rst'

PAGES = [*sorted(ROOT.glob('*.rst')), *sorted(DOCS.rglob('*.rst'))]
"""All that a reader may open, and where every check goes."""


def page_name(path: Path) -> str:
    """``README``, or ``howto/sending``, as the pages refer to each other."""
    root = DOCS if path.is_relative_to(DOCS) else ROOT
    return str(path.relative_to(root).with_suffix(''))


# The markup


class _Options(dict[str, Any]):
    """Whatever options a directive has."""

    def __bool__(self) -> bool:
        return True

    def __missing__(self, name: str) -> Any:
        return directives.unchanged


class _Described(Directive):
    """A directive of Sphinx whose content is text."""

    has_content = True
    optional_arguments = 100
    final_argument_whitespace = True
    option_spec = _Options()

    def run(self) -> list[docutils.nodes.Node]:
        node = docutils.nodes.container()
        self.state.nested_parse(self.content, self.content_offset, node)
        return [node]


class _Generated(_Described):
    """A directive of Sphinx whose content is a list of names, or comes from the code."""

    def run(self) -> list[docutils.nodes.Node]:
        return []


_DIRECTIVES: dict[str, type[Directive]] = {
    **dict.fromkeys(('confval', 'glossary', 'seealso', 'versionadded'), _Described),
    **dict.fromkeys(('autoclass', 'autoexception', 'autofunction', 'automethod'), _Generated),
    **dict.fromkeys(('include', 'interface', 'literalinclude', 'toctree'), _Generated),
}

_ROLES = ('attr', 'class', 'confval', 'doc', 'exc', 'func', 'meth', 'mod', 'ref', 'term')


def _role(name: str, raw: str, text: str, *rest: Any) -> Any:
    return [docutils.nodes.literal(raw, text)], []


@contextmanager
def _sphinx() -> Iterator[None]:
    """What Sphinx adds is known, for as long as a page is read."""
    with (
        mock.patch.dict(directives._directives, _DIRECTIVES),
        mock.patch.dict(roles._roles, dict.fromkeys(_ROLES, _role)),
    ):
        yield


def document(source: str, *, sphinx: bool = False) -> Any:
    """The parsed text; a warning is an error. ``sphinx``: its markup is allowed, too."""
    settings = {
        'halt_level': 2,
        'report_level': 1,
        'syntax_highlight': 'none',
        'doctitle_xform': False,
        'file_insertion_enabled': False,
    }
    if not sphinx:
        return docutils.core.publish_doctree(source, settings_overrides=settings)
    with _sphinx():
        return docutils.core.publish_doctree(source, settings_overrides=settings)


def sections(node: Any) -> list[Any]:
    return [child for child in node if isinstance(child, docutils.nodes.section)]


# The examples


@dataclass(frozen=True)
class Block:
    """An example: the page and section that it stands in, its language, its text, its number
    there."""

    page: str
    section: str
    language: str
    text: str
    number: int

    @property
    def where(self) -> str:
        return f'{self.page}, {self.section} {self.number} ({self.language})'


@cache
def all_blocks() -> list[Block]:
    """The examples of all pages, in order."""
    return [block for path in PAGES for block in _blocks_of(path)]


def _blocks_of(path: Path) -> list[Block]:
    found: list[Block] = []
    tree = document(path.read_text(encoding='utf-8'), sphinx=path.is_relative_to(DOCS))
    for node in tree.findall(docutils.nodes.literal_block):
        parent = node.parent
        while parent is not None and not isinstance(parent, docutils.nodes.section):
            parent = parent.parent
        section = '' if parent is None else parent[0].astext()
        number = sum(block.section == section for block in found) + 1
        language = next(iter(node['classes'][1:]), '')
        found.append(Block(page_name(path), section, language, node.astext(), number))
    return found


def blocks(*languages: str, page: str | None = None) -> list[Block]:
    """The examples in these languages, in order."""
    return [
        block
        for block in all_blocks()
        if block.language in languages and page in (None, block.page)
    ]


def in_section(page: str, section: str, language: str = 'python') -> list[Block]:
    """The examples of one section."""
    return [block for block in blocks(language, page=page) if block.section == section]


# What is generated

BEGIN, END = '.. settings begin\n', '.. settings end\n'


def settings_list() -> str:
    """An entry for each setting."""
    lines = []
    for name, default, meaning in table_rows():
        text = meaning if meaning.startswith('``') else meaning[:1].upper() + meaning[1:]
        lines += [f'.. confval:: {name}', *_wrapped(f':default: {default}', '   ', '      '), '']
        lines += [*_wrapped(text.removesuffix('.') + '.', '   ', '   '), '']
    return '\n'.join(lines)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        100,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def with_settings(page: str) -> str:
    """The text of the page with the list that belongs there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    return f'{before}{BEGIN}\n{settings_list()}\n{END}{after}'

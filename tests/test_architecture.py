"""The layers: a module imports from rows above its own, or from modules left of it in its row.

The table is DESIGN.md's. Whatever breaks a rule is planted here too, to see that it is found.
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import pyramid_sendmail

PACKAGE = Path(pyramid_sendmail.__file__).parent

NAME = 'pyramid_sendmail'

ROWS: tuple[tuple[str, ...], ...] = (
    ('exceptions', 'patterns', 'envelope', 'retry', 'threads', 'converters', 'standin'),
    ('interfaces', 'events', 'relay', 'settings'),
    ('message', 'queue', 'mailers'),
    (
        *('trouble', 'road', 'blank', 'reporting', 'sending', 'transactions', 'bound'),
        *('direct', 'delivery'),
        *('pace', 'gate', 'schedule', 'crew', 'once', 'processor', 'background'),
    ),
    ('config', ''),
    ('scripts',),
)
"""Left to right, from the ground up. A package is one entry, within which imports may go either
way, but never round in a circle; '' is our own __init__."""

BASE = {'pyramid', 'pyramid_tm', 'rich', 'transaction', 'zope'}
"""What may be imported beside the standard library; rich by the scripts alone."""

LONGEST = 400
"""Lines of a module."""

HEAVY = ('rich', 'sqlalchemy', 'asyncio', 'ssl', 'smtplib', 'pyramid', 'waitress', 'ZODB')
"""What the ``import pyramid_sendmail`` of a script should not have to wait for."""


def modules() -> dict[str, ast.Module]:
    """Each module's name within the package ('' is the package itself), and its syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        name = '.'.join(part for part in parts if part != '__init__')
        found[f'{name}.' if parts[-1] == '__init__' and name else name] = parse(path)
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'), str(path))


def imports(name: str, tree: ast.AST) -> Iterator[str]:
    """The absolute name of everything that a module imports, wherever in it; what is imported for
    type hints alone is not."""
    package = [NAME, *name.split('.')][:-1] if name else [NAME]
    for node in walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = '.'.join([*base, *([node.module] if node.module else [])])
            # "from . import tls" imports a module; "from .tls import remedy" imports from one.
            yield from (f'{module}.{alias.name}' for alias in node.names)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING':
        children: list[ast.AST] = [*node.orelse]
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from walk(child)


def place(name: str) -> tuple[int, int]:
    """Row, and place in it, of a module."""
    top = name.partition('.')[0]
    for number, row in enumerate(ROWS):
        if top in row:
            return number, row.index(top)
    raise LookupError(f'{name!r} has no place in ROWS: give it one')


def known_module(target: str, names: set[str]) -> str:
    """The module that an import of ours means: ``x.y.z`` may be ``z`` of the module ``x.y``."""
    inner = target.removeprefix(NAME).removeprefix('.')
    while inner and inner not in names and f'{inner}.' not in names:
        inner = inner.rpartition('.')[0]
    return f'{inner}.' if f'{inner}.' in names else inner


def wrong_imports(trees: Mapping[str, ast.AST]) -> list[str]:
    """Every import that goes down or to the right, or closes a circle within a package."""
    names = {*trees, *modules()}
    wrong = []
    inside: dict[str, set[str]] = {}
    for name, tree in trees.items():
        for target in imports(name, tree):
            if target.partition('.')[0] != NAME:
                continue
            other = known_module(target, names)
            if place(other) == place(name):
                if other != name:
                    inside.setdefault(name, set()).add(other)
            elif place(other) > place(name):
                wrong.append(f'{name or NAME} imports {other or NAME}')
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        wrong.append(' imports '.join(error.args[1]))
    return wrong


def foreign_imports(trees: Mapping[str, ast.AST]) -> list[str]:
    """Every import of what is not there after ``pip install pyramid_sendmail``."""
    wrong = []
    for name, tree in trees.items():
        for target in imports(name, tree):
            top = target.partition('.')[0]
            if top in sys.stdlib_module_names or top == NAME:
                continue
            if top not in BASE or (top == 'rich' and not name.startswith('scripts.')):
                wrong.append(f'{name} imports {target}')
    return wrong


def test_every_module_has_a_place() -> None:
    """A new module is given a place in the table, and one that is gone is taken out."""
    tops = {name.partition('.')[0] for name in modules()}
    assert tops == {top for row in ROWS for top in row}


def test_layers() -> None:
    """Imports go up, or to the left."""
    assert wrong_imports(modules()) == []


@pytest.mark.parametrize(
    ('name', 'source', 'found'),
    [
        ('retry', 'from .settings import TABLE', 'retry imports settings'),
        ('retry', 'from pyramid_sendmail.settings.table import TABLE', 'retry imports settings'),
        ('retry', 'import pyramid_sendmail.config.factories', 'retry imports config'),
        ('envelope', 'from . import retry', 'envelope imports retry'),
        ('sending', 'from .delivery import send_now', 'sending imports delivery'),
        ('sending', 'def f():\n    from .config import x', 'sending imports config'),
        ('queue.store', 'from ..sending import attempt', 'queue.store imports sending'),
        ('queue.store', 'from .. import Message', f'queue.store imports {NAME}'),
        ('message.headers', 'from ..mailers import url', 'message.headers imports mailers.url'),
        ('message.', 'from ..queue import MemoryQueue', 'message. imports queue.'),
        ('config', 'from . import Message', f'config imports {NAME}'),
        ('config', 'from .scripts.qp import run', 'config imports scripts.qp'),
        ('config', 'import pyramid_sendmail', f'config imports {NAME}'),
    ],
)
def test_planted_layers(name: str, source: str, found: str) -> None:
    """A wrong import is found, wherever it stands and however it is written."""
    assert wrong_imports({name: ast.parse(source)}) == [found]


@pytest.mark.parametrize(
    'sources',
    [
        {'queue.a': 'from .b import x', 'queue.b': 'from . import a'},
        {'queue.a': 'from . import MaildirQueue', 'queue.': 'from .a import x'},
        {
            'queue.a': 'from .b import x',
            'queue.b': 'from .c import x',
            'queue.c': 'def f():\n    from pyramid_sendmail.queue import a',
        },
    ],
)
def test_planted_circles(sources: dict[str, str]) -> None:
    """A circle within a package is found."""
    (found,) = wrong_imports({name: ast.parse(source) for name, source in sources.items()})
    assert ' imports queue.' in found


@pytest.mark.parametrize(
    ('name', 'source'),
    [
        ('retry', 'import random\nfrom .exceptions import QueueError'),
        ('mailers.smtp', 'from . import tls\nfrom ..queue.names import parse'),
        ('envelope', 'if TYPE_CHECKING:\n    from .config import x'),
        ('', 'from .message import Message'),
    ],
)
def test_planted_innocence(name: str, source: str) -> None:
    """What is allowed is not found: the standard library, the row above, type hints."""
    trees = {name: ast.parse(source)}
    assert wrong_imports(trees) == []
    assert foreign_imports(trees) == []


def test_nothing_optional() -> None:
    """The package needs its base dependencies and nothing else."""
    assert foreign_imports(modules()) == []


@pytest.mark.parametrize('name', ['waitress', 'sqlalchemy.orm', 'docutils', 'jinja2', 'rich'])
def test_planted_dependencies(name: str) -> None:
    """An optional one is found, also inside a function; rich, outside the scripts."""
    trees = {'processor': ast.parse(f'def f():\n    import {name}')}
    assert foreign_imports(trees) == [f'processor imports {name}']


def test_base_dependencies() -> None:
    """What the modules may import is what setup.cfg installs."""
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / 'setup.cfg', encoding='utf-8')
    required = setup['options']['install_requires'].split('\n')
    names = {re.split('[. ]', line.strip())[0] for line in required if line.strip()}
    assert names == BASE


@pytest.mark.parametrize(
    ('module', 'heavy'),
    [
        (NAME, HEAVY),
        (f'{NAME}.config', ('rich', 'sqlalchemy', 'asyncio', 'smtplib', 'waitress', 'ZODB')),
        (f'{NAME}.scripts.qp', ('rich', 'sqlalchemy', 'asyncio', 'smtplib', 'waitress', 'ZODB')),
    ],
)
def test_light_imports(module: str, heavy: tuple[str, ...]) -> None:
    """What a script does not need is not imported for it."""
    code = f'import sys, {module}; print(*(set({heavy!r}) & set(sys.modules)))'
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


INCLUDED = {
    *('', 'config', 'converters', 'delivery', 'interfaces', 'settings', 'standin'),
}
"""Our modules that ``config.include`` loads, whatever is set."""

URL = {'mailers', 'mailers.builders', 'mailers.parts', 'mailers.url', 'relay'}
"""And those that verify ``mail.url``."""

LATER = {
    *('difflib', 'email.headerregistry', 'email.policy', 'fcntl', 'ipaddress', 'mimetypes'),
    *('resource', 'secrets', 'smtplib', 'ssl', 'stringprep', 'subprocess', 'unicodedata'),
}
"""What is imported when somebody sends, or has made a mistake."""

_NEW = """
import sys
from pyramid.config import Configurator
from pyramid.request import Request
import pyramid_tm
config = Configurator(settings=dict(each.split('=', 1) for each in sys.argv[1:]))
before = set(sys.modules)
config.include('pyramid_sendmail')
config.make_wsgi_app()
print(*sorted(set(sys.modules) - before))
"""


def names_of(run: subprocess.CompletedProcess[str]) -> tuple[set[str], set[str]]:
    """Our own modules, and the others."""
    new = set(run.stdout.split())
    own = {name for name in new if name.partition('.')[0] == NAME}
    return {name.removeprefix(NAME).removeprefix('.') for name in own}, new - own


@pytest.mark.parametrize(
    ('settings', 'own'),
    [
        ([], INCLUDED),
        (['mail.queue_path=/srv/mail'], INCLUDED),
        (['mail.queue_path=/srv/mail', 'mail.url=smtps://a:b@relay:465'], INCLUDED | URL),
        (['mail.queue_path=/srv/mail', 'mail.host=relay', 'mail.tls=true'], INCLUDED | URL),
        (['mail.queue_path=/srv/mail', 'mail.url=sendmail:'], INCLUDED | URL),
    ],
)
def test_light_include(settings: list[str], own: set[str]) -> None:
    """A web process loads no queue, no mailer and nothing about messages before it sends."""
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _NEW, *settings],
        capture_output=True,
        text=True,
        check=True,
    )
    ours, others = names_of(run)
    assert ours == own
    assert others & LATER == set()


_SENT = """
import sys
import transaction
from pyramid.config import Configurator
from pyramid_sendmail import Message
from pyramid_sendmail.interfaces import IMailDelivery
config = Configurator(settings=dict(each.split('=', 1) for each in sys.argv[1:]))
config.include('pyramid_sendmail')
config.commit()
with transaction.manager:
    message = Message(to='ann@example.org', sender='shop@example.org', subject='x', text='x')
    config.registry.getUtility(IMailDelivery).send(message)
    before = set(sys.modules)
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize(
    'settings',
    [
        ['mail.queue_path={folder}/mail'],
        ['mail.queue_path={folder}/mail', 'mail.delivery=direct', 'mail.url=null:'],
        ['mail.url=file://{folder}/mail'],
    ],
)
def test_nothing_is_loaded_in_a_commit(settings: list[str], tmp_path: Path) -> None:
    """What is not there any more, after an upgrade perhaps, is missed by the first ``send``."""
    given = [setting.format(folder=tmp_path) for setting in settings]
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _SENT, 'mail.hostname=web.example.org', *given],
        capture_output=True,
        text=True,
        check=True,
    )
    assert names_of(run) == (set(), set())
    assert (tmp_path / 'mail').exists()


def test_short_modules() -> None:
    """A module has one thing to say."""
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding='utf-8').splitlines())
        for path in PACKAGE.rglob('*.py')
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_one_version() -> None:
    """The version stands in setup.cfg, and nobody repeats it."""
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / 'setup.cfg', encoding='utf-8')
    number = setup['metadata']['version']
    assert version(NAME) == number
    others = [
        path
        for path in (
            *PACKAGE.rglob('*'),
            PACKAGE.parent / 'pyproject.toml',
            PACKAGE.parent / 'Makefile',
        )
        if path.is_file()
        and '__pycache__' not in path.parts
        and number in path.read_text(encoding='utf-8')
    ]
    assert others == []
    assert not hasattr(pyramid_sendmail, '__version__')


def test_every_module_says_what_it_is_for() -> None:
    """In its first line."""
    for name, tree in modules().items():
        if name != 'scripts.':
            assert ast.get_docstring(tree), name

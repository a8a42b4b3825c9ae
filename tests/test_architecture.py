"""The layers: a module imports only from the rows above its own, and no two in a circle.

The rows are the table of docs/contributing/layers.rst.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

import pyramid_sendmail

PACKAGE = Path(pyramid_sendmail.__file__).parent

NAME = 'pyramid_sendmail'

LAYERS = PACKAGE.parent / 'docs' / 'contributing' / 'layers.rst'

LONGEST_MODULE = 400
"""Lines. The contracts stand together in one file, which may be longer."""

HEAVY = ('rich', 'sqlalchemy', 'asyncio', 'smtplib', 'waitress', 'ZODB')
"""What no process should load because it may send mail."""

START_SHARE = 0.5
"""CPU time of import and include beside that of Pyramid's own, at most. It is 0.45: 49 ms on a
machine on which Pyramid takes 110 ms."""


class Row(NamedTuple):
    packages: tuple[str, ...]
    third_party: frozenset[str]


def rows() -> list[Row]:
    """Return the rows of the table. A line without a number continues the row before it."""
    _, _, body, _ = re.split(
        r'^=+  =+  =+$', LAYERS.read_text(encoding='utf-8'), flags=re.MULTILINE
    )
    found: list[Row] = []
    for line in body.strip('\n').splitlines():
        names = [re.findall('``(.*?)``', part) for part in (line[5:59], line[59:])]
        before = Row((), frozenset()) if line[0] != ' ' else found.pop()
        found.append(Row((*before.packages, *names[0]), before.third_party.union(names[1])))
    return found


ROWS = rows()


@cache
def modules() -> Mapping[str, ast.Module]:
    """Return the syntax tree of each module, by its name within the package.

    The name of a package ends in a dot; '' is our own __init__.
    """
    found = {}
    for path in sorted(PACKAGE.rglob('*.py')):
        parts = path.relative_to(PACKAGE).with_suffix('').parts
        name = '.'.join(part for part in parts if part != '__init__')
        tree = ast.parse(path.read_text(encoding='utf-8'), str(path))
        found[f'{name}.' if parts[-1] == '__init__' and name else name] = tree
    return found


def imports(name: str, tree: ast.AST) -> Iterator[str]:
    """Yield the absolute name of each import of a module, except those for type hints alone."""
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


def place(name: str) -> tuple[int, str]:
    """Return the row and the package of a module; the longest name in the table wins."""
    inner = name.removesuffix('.') or NAME
    found = [
        (number, package)
        for number, row in enumerate(ROWS)
        for package in row.packages
        if inner == package or inner.startswith(f'{package}.')
    ]
    if not found:
        raise LookupError(f'{inner} has no place in {LAYERS}: give it one')
    return max(found, key=lambda each: len(each[1]))


def known_module(target: str, names: set[str]) -> str:
    """Return the module that an import means: ``x.y.z`` may be ``z`` of the module ``x.y``."""
    inner = target.removeprefix(NAME).removeprefix('.')
    while inner and inner not in names and f'{inner}.' not in names:
        inner = inner.rpartition('.')[0]
    return f'{inner}.' if f'{inner}.' in names else inner


def wrong_imports(trees: Mapping[str, ast.AST]) -> list[str]:
    """Return each import that is not from a row above, and a circle within a package."""
    names = {*trees, *modules()}
    wrong = []
    inside: dict[str, set[str]] = {}
    for name, tree in trees.items():
        row, package = place(name)
        for target in imports(name, tree):
            if target.partition('.')[0] != NAME:
                continue
            other = known_module(target, names)
            if place(other) == (row, package):
                if other != name:
                    inside.setdefault(name, set()).add(other)
            elif place(other)[0] >= row:
                wrong.append(f'{name or NAME} imports {other or NAME}')
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        wrong.append(' imports '.join(error.args[1]))
    return wrong


def foreign_imports(trees: Mapping[str, ast.AST]) -> list[str]:
    """Return each import of a third-party package that the table does not allow."""
    wrong = []
    for name, tree in trees.items():
        allowed = ROWS[place(name)[0]].third_party
        for target in imports(name, tree):
            top = target.partition('.')[0]
            if top not in (*sys.stdlib_module_names, NAME, *allowed):
                wrong.append(f'{name} imports {target}')
    return wrong


def test_every_package_has_a_place() -> None:
    """Each module has a row, and each package of the table exists."""
    places = {place(name)[1] for name in modules()}
    assert places == {package for row in ROWS for package in row.packages}


def test_layers() -> None:
    """A module imports only from rows above its own."""
    assert wrong_imports(modules()) == []


@pytest.mark.parametrize(
    ('sources', 'found'),
    [
        ({'retry': 'def f():\n    from .config import x'}, 'retry imports config.'),
        ({'queue.memory': 'from .. import Message'}, f'queue.memory imports {NAME}'),
        (
            {'queue.a': 'from .b import x', 'queue.b': 'from . import a'},
            'queue.a imports queue.b imports queue.a',
        ),
    ],
)
def test_planted_imports(sources: dict[str, str], found: str) -> None:
    """An import that climbs, or closes a circle, is found wherever it stands."""
    (wrong,) = wrong_imports({name: ast.parse(source) for name, source in sources.items()})
    assert wrong in (found, 'queue.b imports queue.a imports queue.b')


def test_third_party_packages() -> None:
    """A module imports only the third-party packages of its row; the others are optional."""
    assert foreign_imports(modules()) == []
    planted = {'processor.x': ast.parse('def f():\n    import rich')}
    assert foreign_imports(planted) == ['processor.x imports rich']


def test_base_dependencies() -> None:
    """The third-party packages of the table are those that setup.cfg installs."""
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / 'setup.cfg', encoding='utf-8')
    required = setup['options']['install_requires'].split('\n')
    installed = {re.split('[. ]', line.strip())[0] for line in required if line.strip()}
    assert installed - {'pyramid_tm'} == frozenset[str]().union(*(row.third_party for row in ROWS))


@pytest.mark.parametrize('module', [NAME, f'{NAME}.scripts.qp'])
def test_light_imports(module: str) -> None:
    """No process loads what only some of them need."""
    code = f'import sys, {module}; print(*(set({HEAVY!r}) & set(sys.modules)))'
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == []


_START = """
from time import process_time
began = process_time()
import sys
from pyramid.config import Configurator
def start(*includes):
    config = Configurator(settings={'mail.queue_path': sys.argv[1], 'mail.url': 'smtp://relay'})
    for include in includes:
        config.include(include)
    config.make_wsgi_app()
start('pyramid_tm')
pyramid = process_time()
start('pyramid_sendmail')
print((process_time() - pyramid) / (pyramid - began))
"""


def test_light_start(tmp_path: Path) -> None:
    """To import and include the package takes a fraction of the CPU time of Pyramid's own start."""
    environ = {**os.environ, 'PYTHONPYCACHEPREFIX': str(tmp_path), 'PYTHONDONTWRITEBYTECODE': ''}
    shares = []
    # The first run compiles the modules.
    for _ in range(4):
        run = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', _START, str(tmp_path / 'mail')],
            capture_output=True,
            text=True,
            check=True,
            env=environ,
        )
        shares.append(float(run.stdout))
    assert min(shares[1:]) < START_SHARE


_LOADED = """
import sys
from pyramid.config import Configurator
config = Configurator(settings=dict(each.split('=', 1) for each in sys.argv[1:]))
config.include('pyramid_sendmail')
config.commit()
print(*sys.modules)
"""


@pytest.mark.parametrize(
    ('settings', 'loaded'),
    [
        ([], {'sending.attempt', 'delivery.direct'}),
        (['mail.queue_path=/nowhere'], set[str]()),
        (
            ['mail.queue_path=/nowhere', 'mail.delivery=direct'],
            {'sending.attempt', 'delivery.direct'},
        ),
        (
            ['mail.queue_path=/nowhere', 'mail.processor=thread'],
            {'sending.attempt', 'processor.processor'},
        ),
    ],
)
def test_what_sends_is_loaded_where_mail_is_sent(settings: list[str], loaded: set[str]) -> None:
    """A process that only queues mail loads no module that sends it; one that will send has loaded
    them when it is configured, not at the first request."""
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _LOADED, *settings],
        capture_output=True,
        text=True,
        check=True,
    )
    senders = {f'{NAME}.{name}' for name in ('sending.attempt', 'delivery.direct')}
    senders.add(f'{NAME}.processor.processor')
    assert senders & set(run.stdout.split()) == {f'{NAME}.{name}' for name in loaded}


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
    """A commit imports nothing: after an upgrade on disk, an import may fail."""
    given = [setting.format(folder=tmp_path) for setting in settings]
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', _SENT, 'mail.hostname=web.example.org', *given],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == []
    assert (tmp_path / 'mail').exists()


def test_protocol_without_input_and_output() -> None:
    """What speaks SMTP imports no socket, no clock, no thread and no file: drivers have these."""
    forbidden = {'asyncio', 'io', 'os', 'select', 'selectors', 'socket', 'ssl', 'threading', 'time'}
    trees = {
        name: tree for name, tree in modules().items() if name.startswith('mailers.smtp.protocol.')
    }
    assert len(trees) > 1
    for name, tree in trees.items():
        tops = {target.partition('.')[0] for target in imports(name, tree)}
        assert not tops & forbidden, name


def test_short_modules() -> None:
    """A module has one subject, and is short."""
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding='utf-8').splitlines())
        for path in PACKAGE.rglob('*.py')
    }
    long = {name for name, length in lengths.items() if length > LONGEST_MODULE}
    assert long <= {'interfaces.py'}


def test_one_version() -> None:
    """The version stands in setup.cfg alone."""
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


def test_every_map_is_complete() -> None:
    """A package whose docstring is a map of its modules names each of them."""
    packages = {name: tree for name, tree in modules().items() if name.endswith('.')}
    maps = 0
    for package, tree in packages.items():
        inside = {
            name.removeprefix(package).rstrip('.')
            for name in modules()
            if re.fullmatch(re.escape(package) + r'\w+\.?', name)
        }
        text = ast.get_docstring(tree) or ''
        # Two columns: the module, and what it is for.
        if len(inside & set(re.findall(r'^(?:``)?(\w+)(?:``)?  ', text, re.MULTILINE))) > 1:
            maps += 1
            missing = {name for name in inside if not re.search(rf'\b{name}\b', text)}
            assert not missing, package
    assert maps > 5


def test_every_module_says_what_it_is_for() -> None:
    """Each module has a docstring."""
    for name, tree in modules().items():
        assert ast.get_docstring(tree), name

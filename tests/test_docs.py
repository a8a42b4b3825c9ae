"""README.rst, CHANGES.rst and docs/: every example runs, every name and list is the code's own.

``python -m tests.test_docs`` writes the settings into docs/reference/settings.rst.
"""

from __future__ import annotations

import configparser
import email
import email.policy
import importlib
import logging
import os
import pkgutil
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from email.message import EmailMessage
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import docutils.nodes
import docutils.utils
import plaster
import pytest
import zope.sqlalchemy
from pyramid.config import Configurator
from pyramid.request import Request, apply_request_extensions
from pyramid.response import Response
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from webtest import TestApp
from zope.interface.verify import verifyObject

import pyramid_sendmail
from pyramid_sendmail import exceptions, interfaces
from pyramid_sendmail.config.factories import processor_of
from pyramid_sendmail.envelope import Envelope, Reply, Verdict
from pyramid_sendmail.interfaces import (
    IMailDelivery,
    IMailer,
    IMailEventDispatcher,
    IMailQueue,
    IMailSession,
)
from pyramid_sendmail.mailers.attempts import can_be_driven
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.schemes import RELAY_OPTIONS
from pyramid_sendmail.processor.options import POLL_INTERVAL, SHUTDOWN_GRACE
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.scripts.qp import _parser
from pyramid_sendmail.settings.credentials import SCHEMES
from pyramid_sendmail.settings.table import TABLE, parse_settings
from tests.benchmarks.__main__ import ROWS
from tests.benchmarks.__main__ import _parser as benchmarks_parser
from tests.benchmarks.steady import _parser as steady_parser
from tests.support.doubles import RecordingMailer
from tests.support.messages import freeze
from tests.support.pages import (
    CHANGES,
    DOCS,
    PAGES,
    README,
    ROOT,
    SETTINGS,
    Block,
    all_blocks,
    blocks,
    document,
    in_section,
    page_name,
    sections,
    settings_list,
    with_settings,
)
from tests.support.queues import until
from tests.support.words import Found, found_in, found_in_python

TRIED: dict[tuple[str, str], str] = {}
"""The sections, by page and title, whose examples in Python a test of their own runs."""

TOKEN = 'An access token instead of a password'

SENDING = (
    *('A first mail', 'A message with everything', 'Messages of other libraries'),
    *('Delivery options', 'Send at once', 'Outside a request'),
)

TESTING = ('Look at what was sent', 'Hand the mailer to your application', 'Send nothing')


def tries(name: str, *titles: str) -> Callable[[Any], Any]:
    """Say that a test runs the examples in these sections of a page."""

    def note(test: Any) -> Any:
        TRIED.update(((name, title), test.__name__) for title in titles)
        return test

    return note


def page(name: str) -> str:
    """The text of a page, by its name."""
    (path,) = [path for path in PAGES if page_name(path) == name]
    return path.read_text(encoding='utf-8')


def execute(block: Block, namespace: dict[str, Any]) -> None:
    exec(compile(block.text, block.where, 'exec'), namespace)  # noqa: S102


# An application for the examples to run in

RELAYS: list[RecordingMailer] = []
"""The last one is the present test's."""

ENGINES: list[Engine] = []


def configurator(**settings: Any) -> Configurator:
    config = Configurator(settings={'mail.hostname': 'shop.example.org', **settings})
    execute(in_section('README', 'Install')[0], namespace := {})
    namespace['includeme'](config)
    return config


def application(global_config: Any, **settings: Any) -> Any:
    """What production.ini starts."""
    config = configurator(**settings)
    config.set_mailer(RELAYS[-1])
    config.include(database)
    return config.make_wsgi_app()


class Base(DeclarativeBase):
    """The tables of the application."""


class Refusal(Base):
    """An address that a relay has refused."""

    __tablename__ = 'refusal'

    event_id: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(primary_key=True)
    reason: Mapped[str]


def database(config: Configurator) -> None:
    """``request.dbsession``, as applications have it."""
    engine = create_engine('sqlite:///shop.sqlite')
    ENGINES.append(engine)
    Base.metadata.create_all(engine)

    def dbsession(request: Any) -> Session:
        session = Session(engine)
        zope.sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    config.add_request_method(dbsession, reify=True)


@pytest.fixture(autouse=True)
def _shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of the application: production.ini, static/logo.png."""
    monkeypatch.chdir(tmp_path)
    for name in ('MAIL_URL', 'MAIL_PASSWORD'):
        monkeypatch.delenv(name, raising=False)
    (ini,) = in_section('README', 'Install', 'ini')
    Path('production.ini').write_text(
        ini.text.replace('[app:main]', '[app:main]\nuse = call:tests.test_docs:application'),
        encoding='utf-8',
    )
    Path('static').mkdir()
    Path('static/logo.png').write_bytes(b'\x89PNG')
    RELAYS.append(RecordingMailer())
    package: Any = types.ModuleType('myapp')
    for name in ('mail', 'models'):
        module = types.ModuleType(f'myapp.{name}')
        setattr(package, name, module)
        monkeypatch.setitem(sys.modules, f'myapp.{name}', module)
    monkeypatch.setitem(sys.modules, 'myapp', package)
    package.models.Refusal = Refusal
    yield
    while ENGINES:
        ENGINES.pop().dispose()


@contextmanager
def registered() -> Iterator[Any]:
    """The registry of the application in production.ini."""
    loader = plaster.get_loader('production.ini', protocols=['wsgi'])
    yield loader.get_wsgi_app('main').registry


def request_of(registry: Any, path: str = '/') -> Any:
    request = Request.blank(path)
    request.registry = registry
    apply_request_extensions(request)
    return request


def queued(registry: Any) -> list[Envelope | bytes]:
    """What waits in the queue: envelopes, and the bytes of what is not due yet."""
    queue = registry.getUtility(IMailQueue)
    tickets, _ = queue.scan(1e11)
    envelopes: list[Envelope | bytes] = []
    claimed = set()
    for ticket in tickets:
        claim = queue.claim(ticket)
        if claim is not None:
            envelopes.append(claim.envelope)
            claimed.add(claim.envelope.id)
            claim.release()
    files = Path(queue.path, 'new').iterdir()
    later = [path for path in files if path.name.rpartition('-')[2] not in claimed]
    return [*envelopes, *(path.read_bytes() for path in later)]


# The texts


@pytest.mark.parametrize('path', PAGES, ids=page_name)
def test_valid(path: Path) -> None:
    """docutils has nothing to say about a page, not even a hint; lines are short."""
    source = path.read_text(encoding='utf-8')
    document(source, sphinx=path.is_relative_to(DOCS))
    assert [line for line in source.splitlines() if len(line) > 100] == []


def test_long_description() -> None:
    """README.rst and CHANGES.rst together, as setup.cfg gives them to the package index."""
    document(f'{README.read_text(encoding="utf-8")}\n{CHANGES.read_text(encoding="utf-8")}')


def test_planted_warning() -> None:
    """A mistake in the markup would be found, and Sphinx's own markup where there is no Sphinx."""
    for wrong in ('`x`_', 'A long title\n=====', '``x', '.. code-blok:: x', 'a\n  b\nc'):
        for sphinx in (False, True):
            with pytest.raises(docutils.utils.SystemMessage):
                document(wrong, sphinx=sphinx)
    for markup in (':doc:`x`', '.. toctree::\n\n   x'):
        document(markup, sphinx=True)
        with pytest.raises(docutils.utils.SystemMessage):
            document(markup)


def test_readme_is_short() -> None:
    """README.rst is the short way in: the rest is in docs/."""
    assert len(README.read_text(encoding='utf-8').splitlines()) <= 150


@pytest.mark.parametrize('path', [README, CHANGES], ids=page_name)
def test_links_hold_on_an_index(path: Path) -> None:
    """Links and images are absolute: a relative one breaks on a package index."""
    tree = document(path.read_text(encoding='utf-8'))
    uris = [node['refuri'] for node in tree.findall(docutils.nodes.reference) if 'refuri' in node]
    uris += [node['uri'] for node in tree.findall(docutils.nodes.image)]
    assert [uri for uri in uris if not uri.startswith('https://')] == []


@pytest.mark.parametrize('path', PAGES, ids=page_name)
def test_paths(path: Path) -> None:
    """A file or folder of the repository that a page names is there."""
    source = path.read_text(encoding='utf-8')
    for name in re.findall(r'``((?:docs|demo|tests|tools|pyramid_sendmail)/[\w./-]*)``', source):
        if not name.startswith('demo/var'):
            assert (ROOT / name).exists(), name


INSTALLED_FROM_THE_INDEX = re.compile(
    r'\b(?:install|add)\b[^`\n]*?(?<![\w./-])pyramid[_-]sendmail(?![\w-]*[/.])'
    r'|^[ \t]*pyramid[_-]sendmail[ \t]*(?:[=~<>]=|[<>])',
    re.MULTILINE | re.IGNORECASE,
)
"""A command, or a requirement, that gets the package of this name from the package index."""


@pytest.mark.parametrize('path', PAGES, ids=page_name)
def test_nothing_is_installed_from_the_index(path: Path) -> None:
    """The name belongs to another project there: until it is ours, no page says so."""
    assert INSTALLED_FROM_THE_INDEX.search(path.read_text(encoding='utf-8')) is None


def test_planted_installs() -> None:
    """The check knows what is right from what is wrong."""
    wrong = (
        *('pip install pyramid_sendmail', '$ pip install -U pyramid-sendmail\n'),
        *('pip install pyramid_sendmail==1.0', 'uv pip install pyramid_sendmail[docs]'),
        *('python -m pip install --upgrade pyramid_sendmail', '    pyramid_sendmail >= 1.0'),
        *('uv add pyramid_sendmail', 'pip install waitress pyramid_sendmail'),
    )
    right = (
        *('pip install .', 'pip install dist/pyramid_sendmail-1.0a1-py3-none-any.whl'),
        *('pip install ../pyramid_sendmail/dist/x.whl', 'cd pyramid_sendmail'),
        *("pip install -e '.[docs]'", 'pip install /path/to/pyramid_sendmail/'),
    )
    assert [text for text in wrong if not INSTALLED_FROM_THE_INDEX.search(text)] == []
    assert [text for text in right if INSTALLED_FROM_THE_INDEX.search(text)] == []


def test_settings_list() -> None:
    """It is the table of the code. To write it anew: ``python -m tests.test_docs``."""
    source = SETTINGS.read_text(encoding='utf-8')
    assert source == with_settings(source)


FOREIGN_SETTINGS = {'mail.sendmail_app'}
"""A setting of pyramid_mailer."""

FUNCTIONS = {'mail.make_delivery', 'mail.access_token'}
"""Functions in the examples' ``myapp.mail``."""


@pytest.mark.parametrize('path', PAGES, ids=page_name)
def test_names_in_the_text(path: Path) -> None:
    """Every setting, option and interface that a page names is there."""
    source = path.read_text(encoding='utf-8').replace(settings_list(), '')
    known = {row.name for row in TABLE} | FUNCTIONS | FOREIGN_SETTINGS
    assert set(re.findall(r'\bmail\.(?!rst\b)[a-z_]+', source)) <= known
    for name in set(re.findall(r'\bI(?:Direct|Queued|SMTP|Scannable|Browsable)?Mail\w*', source)):
        assert name in interfaces.__all__
    if page_name(path).startswith(('contributing', 'CONTRIBUTING')):
        return  # options of git, pytest and others
    parsers = (_parser(), benchmarks_parser(), steady_parser())
    options = {
        option
        for parser in parsers
        for action in parser._actions
        for option in action.option_strings
    }
    assert set(re.findall(r'(?<=[\s`])--[a-z]+(?:-[a-z]+)*', source)) <= options


@pytest.mark.parametrize('path', PAGES, ids=page_name)
def test_dotted_names(path: Path) -> None:
    """Every module, class and function of the package that a page names by its path is there."""
    source = path.read_text(encoding='utf-8')
    for name in set(re.findall(r'(?<![\w/.])pyramid_sendmail(?:\.[A-Za-z_]\w*)+', source)):
        assert exists(name), name


def exists(name: str) -> bool:
    """Whether a module, or something within one, has this dotted name."""
    path, *parts = name.split('.')
    found: Any = importlib.import_module(path)
    for part in parts:
        path = f'{path}.{part}'
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ImportError:
                return False
        found = getattr(found, part)
    return True


def test_urls() -> None:
    """Every URL in the table makes a mailer; every scheme and every option has its place."""
    source = page('reference/mail-url')
    urls = re.findall(r'^``([a-z+]+:[^`]*)``', source, re.MULTILINE)
    for url in urls:
        assert mailer_from_url(url, hostname='shop.example.org').name
    assert {url.partition(':')[0] for url in urls} == set(SCHEMES)
    assert set(re.findall(r'``([a-z_]+)=', source)) == set(RELAY_OPTIONS)


def test_event_attributes() -> None:
    """The page of events and the interfaces agree."""
    named = set(re.findall(r'``([a-z_]+)``', page('reference/events')))
    for name in ('IMailSentEvent', 'IMailDeferredEvent', 'IMailErrorEvent'):
        assert set(getattr(interfaces, name).names(all=True)) <= named


def test_loggers() -> None:
    """The list of loggers has each of the package, and no other."""
    listed = re.findall(r'^``(pyramid_sendmail[\w.]*)``$', page('reference/logging'), re.MULTILINE)
    names = [
        module.name
        for module in pkgutil.walk_packages(pyramid_sendmail.__path__, 'pyramid_sendmail.')
    ]
    logs = {name: getattr(importlib.import_module(name), 'log', None) for name in names}
    assert sorted(listed) == sorted(
        name for name, log in logs.items() if isinstance(log, logging.Logger) and log.name == name
    )


def test_errors_and_interfaces() -> None:
    """Each error and each interface has its place in the reference."""
    errors = re.findall(r'autoexception:: pyramid_sendmail\.(\w+)', page('reference/exceptions'))
    errors += re.findall(r'exceptions\.(\w+)$', page('reference/exceptions'), re.MULTILINE)
    assert set(errors) - {'exceptions'} == set(exceptions.__all__)
    source = page('reference/api') + page('reference/events')
    listed = re.findall(r'^\.\. interface:: (\w+)$', source, re.MULTILINE)
    assert sorted(listed) == sorted(interfaces.__all__)


def test_changes() -> None:
    """Newest first; the headings are those that readers know; a first version mends nothing."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg', encoding='utf-8')
    tree = document(CHANGES.read_text(encoding='utf-8'))
    (whole,) = sections(tree)
    versions = sections(whole)
    assert versions[0][0].astext().startswith(setup['metadata']['version'])
    known = ('Security', 'Backward Incompatibilities', 'Features', 'Bug Fixes')
    for release in versions:
        headings = [section[0].astext() for section in sections(release)]
        assert headings
        assert headings == [heading for heading in known if heading in headings]
        for item in release.findall(docutils.nodes.list_item):
            assert item.astext().endswith('.')
    assert [section[0].astext() for section in sections(versions[-1])] == ['Features']


# The words


@pytest.mark.parametrize('path', PAGES, ids=page_name)
def test_words_of_the_pages(path: Path) -> None:
    """No page uses a word of the list in tests/support/words.py, but the page that shows them."""
    if page_name(path) != 'contributing/writing':
        assert_no_words(path, found_in(path.read_text(encoding='utf-8')))


LISTS_OF_WORDS = ('tests/support/words.py', 'tests/unit/support/test_words.py')

CODE = sorted(
    path
    for folder in ('pyramid_sendmail', 'demo', 'docs', 'tests', 'tools')
    for path in (ROOT / folder).rglob('*.py')
    if str(path.relative_to(ROOT)) not in LISTS_OF_WORDS
)


@pytest.mark.parametrize('path', CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_words_of_the_code(path: Path) -> None:
    """No docstring, comment, string or name uses a word of the list."""
    assert_no_words(path, found_in_python(path.read_text(encoding='utf-8')))


@pytest.mark.parametrize(
    'name',
    [
        'Makefile',
        'tests/peers/install',
        'tests/peers/install-node',
        'tests/peers/node/keep.js',
        'tests/peers/node/server.mjs',
        'tools/mutation/mutants.toml',
    ],
)
def test_words_of_other_files(name: str) -> None:
    """Nor do the files beside the code that are not Python."""
    assert_no_words(ROOT / name, found_in((ROOT / name).read_text(encoding='utf-8')))


def assert_no_words(path: Path, found: Iterable[Found]) -> None:
    lines = [f'{path.relative_to(ROOT)}:{each}' for each in sorted(found)]
    if lines:
        pytest.fail('\n'.join(lines), pytrace=False)


# The examples that are not Python


def assert_runs_processor(command: str) -> Any:
    """A command line of psendmail-qp that its parser takes."""
    program, *arguments = shlex.split(command)
    assert Path(program).name == 'psendmail-qp'
    return _parser().parse_intermixed_args(arguments)


OTHER_PROGRAMS = {
    'export',
    'cat',
    'cd',
    'chgrp',
    'curl',
    'git',
    'grep',
    'less',
    'ls',
    'mkdir',
    'mv',
}


def test_console() -> None:
    """Targets of the Makefile, console scripts of the package, installations from the repository.
    Lines without ``$`` are output."""
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    scripts = {each.name for each in entry_points(group='console_scripts')}
    seen = set()
    for block in blocks('console'):
        assert block.text.startswith('$ '), block.where
        for line in block.text.splitlines():
            if not line.startswith('$ '):
                continue
            program, *arguments = shlex.split(line[2:])
            program = program.removeprefix('.venv/bin/')
            seen.add(program)
            if program == 'make':
                assert {each for each in arguments if '=' not in each} <= targets, block.where
            elif program == 'psendmail-qp':
                assert_runs_processor(line[2:])
                assert program in scripts
            elif program == 'pip':
                assert arguments[0] == 'install'
                for each in arguments[1:]:
                    known = each.startswith(('.', '/', '-', 'dist/')) or each == 'waitress'
                    assert known, block.where
            elif program in {'python', 'python3'}:
                assert arguments[0] == '-m'
                assert find_spec(arguments[1]) is not None, block.where
                if arguments[1] == 'tests.benchmarks':
                    known = {row.name for row in ROWS}
                    assert set(benchmarks_parser().parse_args(arguments[2:]).rows) <= known
                elif arguments[1] == 'tests.benchmarks.steady':
                    steady_parser().parse_args(arguments[2:])
            elif program == 'pserve':
                assert arguments[0].endswith('.ini')
            elif program == 'sudo':
                assert arguments[0] in {'groupadd', 'usermod', 'install', 'systemctl'}
            else:
                assert program in OTHER_PROGRAMS, block.where
    assert {'make', 'psendmail-qp', 'pip', 'mv'} <= seen


@pytest.mark.parametrize('block', blocks('ini'), ids=lambda block: block.where)
def test_ini(block: Block) -> None:
    """Settings as PasteDeploy reads them; units that start the processor and wait for it."""
    kind = block.text.splitlines()[0]
    if kind.startswith('[app:'):
        for name in re.findall(r'^\[app:(\w+)\]$', block.text, re.MULTILINE):
            assert mailer_of(block, name).name
        return
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(block.text)
    if kind == '[loggers]':
        for what in ('logger', 'handler', 'formatter'):
            for key in parser[f'{what}s']['keys'].split(','):
                assert f'{what}_{key.strip()}' in parser
        return
    assert kind in ('[Unit]', '[program:shop-mail]')
    service = parser['Service'] if kind == '[Unit]' else parser['program:shop-mail']
    assert_runs_processor(service.get('ExecStart') or service['command'])
    assert float(service.get('TimeoutStopSec') or service['stopwaitsecs']) > SHUTDOWN_GRACE


def mailer_of(block: Block, name: str = 'main') -> Any:
    """The mailer that the settings of an example describe."""
    secrets = Path('secrets').resolve()
    secrets.mkdir(exist_ok=True)
    for secret in ('mail-password', 'token'):
        (secrets / secret).write_text('s3kr1t', encoding='utf-8')
    path = Path('example.ini')
    path.write_text(block.text.replace('/run/secrets', str(secrets)), encoding='utf-8')
    settings = parse_settings(plaster.get_settings(str(path), f'app:{name}'))
    if settings.queue_path is not None:
        assert settings.queue_path == str(path.resolve().parent / 'mail')
    return mailer_from_url(
        settings.url,
        hostname=settings.hostname,
        username=settings.username,
        password=settings.password,
    )


def test_ini_kinds() -> None:
    """The pages show how to start the processor, and their URLs mean what they say."""
    kinds = {block.text.splitlines()[0] for block in blocks('ini')}
    assert {'[app:main]', '[Unit]', '[program:shop-mail]', '[loggers]'} <= kinds
    (several,) = [mailer_of(block).name for block in blocks('ini', page='howto/several-relays')]
    for part in ('smtps://relay.example.org:465', 'smtps://other.example.org:465', 'sendmail:'):
        assert part in several
    (token,) = in_section('howto/relay-and-tls', TOKEN, 'ini')
    assert mailer_of(token).name == 'smtp://smtp.example.com:587'
    (dovecot,) = blocks('ini', page='howto/dovecot-lmtp')
    assert mailer_of(dovecot).name == 'lmtp+unix:/run/dovecot/lmtp'
    (set_ups,) = in_section('README', 'Set-ups', 'ini')
    names = [mailer_of(set_ups, name).name for name in ('development', 'staging', 'production')]
    assert [name.partition(':')[0] for name in names] == ['file', 'file', 'smtps']


def test_cron() -> None:
    """Five stars, and a command that says nothing unless something is wrong."""
    (block,) = [block for block in blocks('text') if block.text.startswith('* ')]
    match = re.fullmatch(r'(?:\* ){5}(.*)', block.text)
    assert match
    arguments = assert_runs_processor(match[1])
    assert arguments.once
    assert arguments.quiet


def test_dovecot() -> None:
    """Its configuration opens the socket that the settings name, below /run/dovecot."""
    (block,) = blocks('text', page='howto/dovecot-lmtp')
    (ini,) = blocks('ini', page='howto/dovecot-lmtp')
    assert block.text.count('{') == block.text.count('}') == 2
    (socket,) = re.findall(r'unix_listener (\S+) {', block.text)
    assert f'mail.url = lmtp+unix:/run/dovecot/{socket}' in ini.text


def test_every_block_is_tried() -> None:
    """No example is in a language that no test looks at; ``text`` is for pictures and output."""
    tried = ('python', 'ini', 'console', 'text')
    assert [block.where for block in all_blocks() if block.language not in tried] == []
    counted = sum(path.read_text(encoding='utf-8').count('.. code-block:: ') for path in PAGES)
    assert len(all_blocks()) == counted
    assert set(TRIED) <= {(block.page, block.section) for block in blocks('python')}


# The examples in Python


def test_other_examples() -> None:
    """Examples without a test of their own run, page by page, from top to bottom, in an
    application whose request has begun a transaction."""
    others = [block for block in blocks('python') if (block.page, block.section) not in TRIED]
    for name in dict.fromkeys(block.page for block in others):
        config = configurator(**{'mail.default_sender': 'shop@example.org'})
        config.set_mailer(RELAYS[-1])
        config.include(database)
        config.commit()
        request = request_of(config.registry)
        message = EmailMessage()
        message['To'], message['Subject'] = 'ann@example.org', 'Welcome'
        message.set_content('Good to see you.')
        namespace = {
            '__name__': 'example',
            'config': config,
            'registry': config.registry,
            'request': request,
            'message': message,
            'pdf': b'%PDF',
        }
        request.tm.begin()
        for block in others:
            if block.page == name:
                execute(block, namespace)
        request.tm.abort()


@tries('README', 'Install')
def test_install() -> None:
    """The three lines and the settings make a queued delivery, with nothing on disk yet."""
    with registered() as registry:
        assert verifyObject(interfaces.IQueuedMailDelivery, registry.getUtility(IMailDelivery))
        assert registry.getUtility(IMailQueue).path == str(Path('mail').resolve())
    assert not Path('mail').exists()


@tries('README', 'Use')
def test_use() -> None:
    """README.rst's view sends to a name and an address that cannot become two recipients, its
    subscriber is called, and its test passes."""
    view, subscriber, test = in_section('README', 'Use')
    config = configurator(**{'mail.default_sender': 'shop@example.org'})
    config.set_mailer(RELAYS[-1])
    config.include(database)
    execute(view, namespace := {})
    execute(subscriber, namespace)
    namespace['includeme'](config)
    config.commit()
    RELAYS[-1].always('ann@example.org', Verdict('failed', Reply(550, 'no such user')))
    request = request_of(config.registry, '/?name=Smith,+Ann&address=ann@example.org')
    with request.tm:
        message_id = namespace['sign_up'](request)['message_id']
    until(lambda: refusals(config.registry))
    (sent,) = RELAYS[-1].sent
    assert (sent.message_id, sent.recipients) == (message_id, ('ann@example.org',))
    assert b'To: "Smith, Ann" <ann@example.org>\r\n' in sent.raw
    assert [row[1:] for row in refusals(config.registry)] == [
        ('ann@example.org', '550 no such user')
    ]
    execute(test, namespace)
    config = configurator(**{'mail.default_sender': 'shop@example.org'})
    config.add_route('sign_up', '/sign-up')
    config.add_view(namespace['sign_up'], route_name='sign_up', renderer='json')
    namespace['test_sign_up'](config)


@tries('tutorial/first-mail', 'Write an application')
def test_tutorial() -> None:
    """Its server takes the form, its application sends into the queue, its processor delivers, its
    subscriber writes: by the commands of the page, with nothing but its environment."""
    (source,) = blocks('python', page='tutorial/first-mail')
    (ini,) = blocks('ini', page='tutorial/first-mail')
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    Path('shop.py').write_text(source.text, encoding='utf-8')
    Path('development.ini').write_text(ini.text.replace('6543', str(port)), encoding='utf-8')
    assert '    $ export PYTHONPATH=$PWD\n' in page_of('tutorial/first-mail')
    environ = {**os.environ, 'PYTHONPATH': f'{Path.cwd()}:{ROOT}', 'PYTHONWARNINGS': 'ignore'}
    programs = Path(sys.executable).parent
    server = subprocess.Popen(
        [programs / 'pserve', 'development.ini'],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def post(**fields: str) -> str:
        body = urlencode(fields).encode()
        with urlopen(f'http://127.0.0.1:{port}/sign-up', body, timeout=20) as response:
            return str(response.read().decode())

    def is_up() -> bool:
        with suppress(OSError), socket.create_connection(('127.0.0.1', port), 1):
            return True
        return False

    try:
        until(is_up, 30)
        assert post(address='ann@example.org').startswith('Message-ID: <')
        assert len(list(Path('mail/new').iterdir())) == 1
        with pytest.raises(HTTPError, match='500'):
            post(address='bob@example.org', fail='yes')
        assert len(list(Path('mail/new').iterdir())) == 1
    finally:
        server.terminate()
        server.wait(20)
    run = subprocess.run(
        [programs / 'psendmail-qp', '--once', 'development.ini'],
        env=environ,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, '1 delivered' in run.stderr) == (0, True), run.stderr
    (mail,) = Path('outbox/new').iterdir()
    assert b'\nTo: ann@example.org\r\n' in mail.read_bytes()
    assert list(Path('mail/new').iterdir()) == []
    assert 'ann@example.org' in Path('sent.txt').read_text(encoding='utf-8')


def page_of(name: str) -> str:
    return (DOCS / f'{name}.rst').read_text(encoding='utf-8')


def sending() -> list[Block]:
    """The examples of howto/sending, in order."""
    return [block for title in SENDING for block in in_section('howto/sending', title)]


@tries('howto/sending', *SENDING)
def test_sending(capsys: pytest.CaptureFixture[str]) -> None:
    """Each example of the page sends what it says."""
    with registered() as registry:
        namespace: dict[str, Any] = {'registry': registry, 'pdf': b'%PDF'}
        for block in sending():
            request = namespace['request'] = request_of(registry)
            request.tm.begin()
            execute(block, namespace)
            if 'def sign_up' in block.text:
                sent = namespace['sign_up'](request)
            request.tm.commit()
        mails = queued(registry)
    whole = [mail for mail in mails if isinstance(mail, Envelope)]
    welcome = [mail for mail in whole if mail.subject == 'Welcome']
    assert sent['message_id'] in {mail.message_id for mail in welcome}
    # sign_up, the library's message, the script, and the code without a request.
    assert len(welcome) == 4
    (invoice,) = [mail for mail in whole if mail.subject == 'Your invoice']
    assert invoice.recipients == (
        *('ann@example.org', 'bob@example.org'),
        *('accounts@example.org', 'archive@example.org'),
    )
    assert (invoice.tag, invoice.sender) == ('invoice', 'billing@example.org')
    assert b'archive@' not in invoice.raw
    read = email.message_from_bytes(invoice.raw, policy=email.policy.default)
    assert [part.get_content_type() for part in read.walk()] == [
        *('multipart/mixed', 'multipart/alternative', 'text/plain', 'multipart/related'),
        *('text/html', 'image/png', 'application/pdf'),
    ]
    (later,) = [mail for mail in mails if isinstance(mail, bytes)]
    assert b'list-members@example.org' in later
    assert b'user_id' in later
    assert len(mails) == 6
    # send_now did not wait for any of them.
    assert [mail.subject for mail in RELAYS[-1].sent] == ['Welcome']
    assert "('ann@example.org',)" in capsys.readouterr().out


def test_send_now_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The example catches what send_now raises."""
    (block,) = in_section('howto/sending', 'Send at once')
    (source,) = [block for block in sending() if 'EmailMessage()' in block.text]
    with registered() as registry:
        namespace: dict[str, Any] = {'request': request_of(registry)}
        with namespace['request'].tm:
            execute(source, namespace)
        RELAYS[-1].unavailable = 'connection refused'
        execute(block, namespace)
        RELAYS[-1].unavailable = None
        RELAYS[-1].script('ann@example.org', Verdict('failed', Reply(550, 'no such user')))
        execute(block, namespace)
    out = capsys.readouterr().out.splitlines()
    assert 'not sent: recording:: connection refused' in out[0]
    assert '550 no such user' in out[1]


@tries('howto/relay-and-tls', TOKEN)
def test_access_token() -> None:
    """The function of the page is what ``token=`` takes."""
    (block,) = in_section('howto/relay-and-tls', TOKEN)
    Path('token.json').write_text('{"access_token": "s3kr1t"}', encoding='utf-8')
    execute(replace(block, text=block.text.replace('/run/secrets/', '')), namespace := {})
    assert namespace['access_token']() == 's3kr1t'
    sys.modules['myapp.mail'].access_token = namespace['access_token']  # type: ignore[attr-defined]
    (option,) = re.findall(r'``(token=[^`]+)``', page('howto/relay-and-tls'))
    assert mailer_from_url(f'smtps://ann@relay?{option}', hostname='shop.example.org')


@tries('howto/python-configuration', 'The directives')
def test_in_python() -> None:
    """The three directives, with an object, and with a dotted name of a function."""
    config = configurator()
    bound = configurator_delivery()
    sys.modules['myapp.mail'].make_delivery = lambda registry: bound  # type: ignore[attr-defined]
    (block,) = in_section('howto/python-configuration', 'The directives')
    execute(block, {'config': config})
    config.commit()
    assert config.registry.getUtility(IMailDelivery) is bound
    assert isinstance(config.registry.getUtility(IMailQueue), MaildirQueue)
    assert config.registry.getUtility(IMailer).name == 'null:'


def configurator_delivery() -> Any:
    config = configurator()
    config.commit()
    return config.registry.getUtility(IMailDelivery)


@tries('howto/events', 'Subscribe')
def test_events() -> None:
    """The subscriber writes what was refused, once, and only of mail with its tag."""
    (block,) = in_section('howto/events', 'Subscribe')
    execute(block, namespace := {})
    config = configurator(**{'mail.default_sender': 'shop@example.org'})
    config.set_mailer(RELAYS[-1])
    config.include(database)
    namespace['includeme'](config)
    config.commit()
    registry = config.registry
    for address in ('ann@example.org', 'bob@example.org'):
        RELAYS[-1].always(address, Verdict('failed', Reply(550, 'no such user')))
    execute(sending()[0], names := {})
    request = request_of(registry)
    with request.tm:
        names['sign_up'](request)
        request.mailer.send(
            names['Message'](subject='Other', to='bob@example.org', text='x', tag='other')
        )
    dispatcher: Any = registry.getUtility(IMailEventDispatcher)
    assert dispatcher.flush(10)
    rows = refusals(registry)
    assert [row[1:] for row in rows] == [('ann@example.org', '550 no such user')]
    again = request_of(registry)
    event = types.SimpleNamespace(
        request=again, id=rows[0][0], recipients=('ann@example.org',), reason='550 no such user'
    )
    with again.tm:
        namespace['note_refusal'](event)
    assert refusals(registry) == rows


def refusals(registry: Any) -> list[tuple[str, str, str]]:
    request = request_of(registry)
    with request.tm:
        rows = request.dbsession.scalars(select(Refusal))
        return [(row.event_id, row.address, row.reason) for row in rows]


@tries('howto/testing', *TESTING)
def test_outbox() -> None:
    """The test mailer keeps the contract, and has the mail when the request has ended."""
    (block,), (main,), (memory,) = (in_section('howto/testing', title) for title in TESTING)
    config = configurator(**{'mail.default_sender': 'shop@example.org'})
    execute(block, namespace := {'config': config})
    outbox: Any = namespace['outbox']
    assert verifyObject(IMailer, outbox)
    assert verifyObject(IMailSession, outbox)
    execute(sending()[0], names := {})

    def view(request: Any) -> Response:
        return Response(names['sign_up'](request)['message_id'])

    config.add_route('home', '/')
    config.add_view(view, route_name='home')
    app = TestApp(config.make_wsgi_app())
    message_id = app.get('/').text
    (envelope,) = outbox.envelopes
    assert envelope.message_id == message_id
    for name in ('sender', 'recipients', 'subject', 'tag', 'metadata', 'raw'):
        assert hasattr(envelope, name)

    execute(main, namespace := {})
    app = namespace['main']({}, mailer=outbox, **{'mail.default_sender': 'shop@example.org'})
    assert app.registry.getUtility(IMailer) is outbox

    config = configurator()
    execute(memory, namespace := {'config': config})
    config.commit()
    assert isinstance(config.registry.getUtility(IMailQueue), MemoryQueue)


@tries('howto/own-mailer', 'Send in a way of your own', 'A mailer that speaks SMTP')
def test_own_mailer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mailer that blocks delivers, defers, refuses and knows what is ambiguous; the one that
    speaks SMTP needs no thread of its own."""
    (blocking,), (smtp,) = (
        in_section('howto/own-mailer', title)
        for title in ('Send in a way of your own', 'A mailer that speaks SMTP')
    )
    answers: list[Any] = [(202, 'ok'), (503, 'busy'), (422, 'no'), TimeoutError('late')]

    def post(sender: str, recipients: tuple[str, ...], raw: bytes) -> tuple[int, str]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast(tuple[int, str], answer)

    sys.modules['myapp.mail'].post = post  # type: ignore[attr-defined]
    config = configurator()
    execute(blocking, namespace := {})
    namespace['includeme'](config)
    config.commit()
    mailer: Any = config.registry.getUtility(IMailer)
    assert verifyObject(IMailer, mailer)
    assert verifyObject(IMailSession, mailer)
    assert not can_be_driven(mailer)
    envelope = freeze()
    outcomes = mailer.connect().send([envelope] * 4)
    assert [verdict.status for outcome in outcomes for verdict in outcome.values()] == [
        *('delivered', 'deferred', 'failed', 'ambiguous')
    ]
    answers.append(ConnectionRefusedError('nothing listens'))
    with pytest.raises(exceptions.MailerUnavailable, match='nothing listens'):
        list(mailer.connect().send([envelope]))

    monkeypatch.setenv('SHOP_PASSWORD', 's3kr1t')
    execute(smtp, namespace := {})
    assert can_be_driven(namespace['ShopMailer']())


def test_dead_letter() -> None:
    """The commands of the page bring a dead letter back, for the recipients that failed."""
    (block,) = [block for block in blocks('console') if 'mv ' in block.text]
    RELAYS[-1].script('ann@example.org', Verdict('failed', Reply(550, 'no such user')))
    with registered() as registry:
        request = request_of(registry)
        execute(sending()[0], namespace := {})
        with request.tm:
            request.mailer.send(
                namespace['Message'](
                    to=['ann@example.org', 'bob@example.org'], text='x', subject='x'
                )
            )
        processor = processor_of(registry, workers=1)
        processor.run_once()
        (letter,) = Path('mail/failed').iterdir()
        assert '550' in letter.read_text(encoding='utf-8')
        assert 'X-Envelope-Outcome' in letter.read_text(encoding='utf-8')
        for line in block.text.splitlines():
            command = re.sub(r'failed/\S+', f'failed/{letter.name}', line[2:])
            if command.startswith('mv '):
                subprocess.run(shlex.split(command), cwd='mail', check=True)
        processor.run_once()
    assert RELAYS[-1].accepted('ann@example.org') == 1
    assert RELAYS[-1].accepted('bob@example.org') == 1
    assert list(Path('mail/failed').iterdir()) == []
    assert POLL_INTERVAL <= 30


@tries('howto/dead-letters', 'In Python')
def test_dead_letter_in_python(capsys: pytest.CaptureFixture[str]) -> None:
    """The function of the page retries the mail with its tag, and shows why it had failed."""
    (block,) = in_section('howto/dead-letters', 'In Python')
    execute(block, namespace := {})
    execute(sending()[0], namespace)
    RELAYS[-1].script('ann@example.org', Verdict('failed', Reply(550, 'no such user')))
    with registered() as registry:
        request = request_of(registry)
        with request.tm:
            namespace['sign_up'](request)
        processor = processor_of(registry, workers=1)
        processor.run_once()
        namespace['retry_failed'](registry, 'invoice')
        assert capsys.readouterr().out == ''
        namespace['retry_failed'](registry, 'welcome')
        assert '550 no such user True' in capsys.readouterr().out
        processor.run_once()
    assert RELAYS[-1].accepted('ann@example.org') == 1


@pytest.mark.slow
def test_types() -> None:
    """mypy finds nothing wrong in the examples."""
    pytest.importorskip('mypy', reason="pip install -e '.[lint]'")
    names = 'request: Any, config: Any, registry: Any, message: Any, pdf: bytes'
    lines = ['from typing import Any']
    for number, block in enumerate(blocks('python')):
        lines.append(f'def example_{number}({names}) -> None:')
        lines.append(textwrap.indent(block.text, '    '))
    Path('examples.py').write_text('\n'.join(lines), encoding='utf-8')
    shutil.copy(ROOT / 'setup.cfg', '.')
    run = subprocess.run(
        [
            *(sys.executable, '-m', 'mypy', '--check-untyped-defs'),
            *('--allow-untyped-defs', '--allow-untyped-calls', '--ignore-missing-imports'),
            '--cache-dir',
            *(str(ROOT / '.mypy_cache'), 'examples.py'),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


if __name__ == '__main__':
    SETTINGS.write_text(with_settings(SETTINGS.read_text(encoding='utf-8')), encoding='utf-8')
    print(f'wrote the table of settings into {SETTINGS.relative_to(ROOT)}')

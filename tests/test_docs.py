"""README.rst and CHANGES.rst: every example runs, every table and name is the code's own.

``python -m tests.test_docs`` writes the table of settings into README.rst.
"""

from __future__ import annotations

import configparser
import email
import email.policy
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import docutils.core
import docutils.nodes
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

from pyramid_sendmail import interfaces
from pyramid_sendmail.config.factories import processor_of
from pyramid_sendmail.envelope import Envelope, Reply, Verdict
from pyramid_sendmail.interfaces import (
    IMailDelivery,
    IMailer,
    IMailEventDispatcher,
    IMailQueue,
    IMailSession,
)
from pyramid_sendmail.mailers.factory import mailer_from_url
from pyramid_sendmail.mailers.schemes import RELAY_OPTIONS
from pyramid_sendmail.processor.options import POLL_INTERVAL, SHUTDOWN_GRACE
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.maildir.filename import FOLDER_OF
from pyramid_sendmail.scripts.qp import _parser
from pyramid_sendmail.settings.credentials import SCHEMES
from pyramid_sendmail.settings.table import TABLE, parse_settings, table_rows
from tests.benchmarks.__main__ import ROWS
from tests.benchmarks.__main__ import _parser as benchmarks_parser
from tests.support.doubles import RecordingMailer

ROOT = Path(__file__).parent.parent
README = ROOT / 'README.rst'
CHANGES = ROOT / 'CHANGES.rst'

BEGIN, END = '.. settings begin\n', '.. settings end\n'


def settings_table() -> str:
    """The table of settings, as README.rst has it."""
    rows = [('setting', 'default', 'meaning'), *((f'``{n}``', d, m) for n, d, m in table_rows())]
    lines = ['.. list-table::', '   :header-rows: 1', '   :widths: 25 25 50', '']
    for row in rows:
        for index, cell in enumerate(row):
            first = '   * - ' if index == 0 else '     - '
            lines += textwrap.wrap(
                cell,
                100,
                initial_indent=first,
                subsequent_indent=' ' * 7,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return '\n'.join(lines) + '\n'


def with_table(readme: str) -> str:
    """The text of README.rst with the table that belongs there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin
    assert end
    return f'{before}{BEGIN}\n{settings_table()}\n{END}{after}'


@dataclass(frozen=True)
class Block:
    """An example: the section that it stands in, its language, its text, its number there."""

    section: str
    language: str
    text: str
    number: int

    @property
    def where(self) -> str:
        return f'{self.section} {self.number} ({self.language})'


def document(source: str) -> Any:
    """The parsed text; a warning is an error."""
    return docutils.core.publish_doctree(
        source,
        settings_overrides={
            'halt_level': 2,
            'report_level': 1,
            'syntax_highlight': 'none',
            'doctitle_xform': False,
            'file_insertion_enabled': False,
        },
    )


@cache
def all_blocks() -> list[Block]:
    """README.rst's examples, in order."""
    found: list[Block] = []
    for node in document(README.read_text(encoding='utf-8')).findall(docutils.nodes.literal_block):
        parent = node.parent
        while not isinstance(parent, docutils.nodes.section):
            parent = parent.parent
        section = parent[0].astext()
        number = sum(block.section == section for block in found) + 1
        found.append(Block(section, node['classes'][-1], node.astext(), number))
    return found


def blocks(*languages: str) -> list[Block]:
    """README.rst's examples in these languages, in order."""
    return [block for block in all_blocks() if block.language in languages]


def in_section(section: str) -> list[Block]:
    return [block for block in blocks('python') if block.section == section]


def execute(block: Block, namespace: dict[str, Any]) -> None:
    exec(compile(block.text, f'README.rst: {block.where}', 'exec'), namespace)  # noqa: S102


# An application for the examples to run in

RELAYS: list[RecordingMailer] = []
"""The last one is the present test's."""

ENGINES: list[Engine] = []


def configurator(**settings: Any) -> Configurator:
    config = Configurator(settings={'mail.hostname': 'shop.example.org', **settings})
    execute(in_section('Use it')[0], namespace := {})
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
    ini = next(block for block in blocks('ini') if block.section == 'Use it')
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


def request_of(registry: Any) -> Any:
    request = Request.blank('/')
    request.registry = registry
    apply_request_extensions(request)
    return request


def queued(registry: Any) -> list[Envelope | bytes]:
    """What waits in the queue: envelopes, and the bytes of what is not due yet."""
    queue = registry.getUtility(IMailQueue)
    tickets, _ = queue.scan(1e11)
    envelopes: list[Envelope | bytes] = []
    for ticket in tickets:
        claim = queue.claim(ticket)
        if claim is None:  # not due yet
            path = f'{queue.path}/{FOLDER_OF[ticket.state]}/{ticket.order}'
            envelopes.append(Path(path).read_bytes())
        else:
            envelopes.append(claim.envelope)
            claim.release()
    return envelopes


# The texts


@pytest.mark.parametrize('path', [README, CHANGES], ids=lambda path: path.name)
def test_valid(path: Path) -> None:
    """docutils has nothing to say about it, not even a hint; lines are short."""
    source = path.read_text(encoding='utf-8')
    document(source)
    assert [line for line in source.splitlines() if len(line) > 100] == []


def test_long_description() -> None:
    """Both together, as setup.cfg gives them to the package index."""
    document(f'{README.read_text(encoding="utf-8")}\n{CHANGES.read_text(encoding="utf-8")}')


def test_planted_warning() -> None:
    """A mistake in the markup would be found."""
    for wrong in ('`x`_', 'A long title\n=====', '``x', '.. code-blok:: x', 'a\n  b\nc'):
        with pytest.raises(docutils.utils.SystemMessage):
            document(wrong)


def test_settings_table() -> None:
    """It is the table of the code. To write it anew: ``python -m tests.test_docs``."""
    source = README.read_text(encoding='utf-8')
    assert source == with_table(source)


def test_names_in_the_text() -> None:
    """Every setting, option and interface that the text names is there."""
    source = README.read_text(encoding='utf-8').replace(settings_table(), '')
    known = {row.name for row in TABLE}
    functions = {'mail.make_delivery', 'mail.access_token'}
    foreign = {'mail.sendmail_app'}
    assert set(re.findall(r'\bmail\.[a-z_]+', source)) - functions - foreign <= known
    parsers = (_parser(), benchmarks_parser())
    options = {
        option
        for parser in parsers
        for action in parser._actions
        for option in action.option_strings
    }
    assert set(re.findall(r'(?<=\s)--[a-z]+', source)) <= options
    for name in set(re.findall(r'\bIMail[A-Za-z]*', source)):
        assert name in interfaces.__all__


def test_urls() -> None:
    """Every URL in the table makes a mailer; every scheme and every option has its place."""
    source = README.read_text(encoding='utf-8')
    section = source.partition('\nRelay and TLS\n')[2].partition('\nSeveral relays\n')[0]
    urls = re.findall(r'^``([a-z+]+:[^`]*)``', section, re.MULTILINE)
    for url in urls:
        assert mailer_from_url(url, hostname='shop.example.org').name
    assert {url.partition(':')[0] for url in urls} == set(SCHEMES)
    assert set(re.findall(r'``([a-z_]+)=', section)) == set(RELAY_OPTIONS)


def test_event_attributes() -> None:
    """The table of events and the interfaces agree."""
    source = README.read_text(encoding='utf-8')
    section = source.partition('\nEvents\n')[2].partition('\nWhat is guaranteed\n')[0]
    named = set(re.findall(r'``([a-z_]+)``', section))
    for name in ('IMailSentEvent', 'IMailDeferredEvent', 'IMailErrorEvent'):
        assert set(getattr(interfaces, name).names(all=True)) <= named


def test_changes() -> None:
    """Newest first; the headings are those that readers know."""
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


def sections(node: Any) -> list[Any]:
    return [child for child in node if isinstance(child, docutils.nodes.section)]


# The examples that are not Python


def assert_runs_processor(command: str) -> Any:
    """A command line of psendmail-qp that its parser takes."""
    program, *arguments = shlex.split(command)
    assert Path(program).name == 'psendmail-qp'
    return _parser().parse_intermixed_args(arguments)


def test_console() -> None:
    """Targets of the Makefile, console scripts of the package."""
    targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    scripts = {each.name for each in entry_points(group='console_scripts')}
    seen = set()
    for block in blocks('console'):
        for line in block.text.splitlines():
            assert line.startswith('$ ')
            program, *arguments = shlex.split(line[2:])
            seen.add(program)
            if program == 'make':
                assert set(arguments) <= targets
            elif program == 'psendmail-qp':
                assert_runs_processor(line[2:])
                assert program in scripts
            elif program == 'pip':
                assert arguments == ['install', 'pyramid_sendmail']
            elif program == '.venv/bin/python':
                assert arguments[:2] == ['-m', 'tests.benchmarks']
                known = {row.name for row in ROWS}
                assert set(benchmarks_parser().parse_args(arguments[2:]).rows) <= known
            elif program == 'sudo':
                assert arguments[0] in {'groupadd', 'usermod', 'install'}
            else:
                assert program in {'cd', 'less', 'mv'}  # see test_dead_letter
    assert {'make', 'psendmail-qp', 'pip', 'mv'} <= seen


def test_ini() -> None:
    """Settings as PasteDeploy reads them; units that start the processor and wait for it."""
    kinds = []
    mailers = []
    secrets = Path('secrets').resolve()
    secrets.mkdir()
    for name in ('mail-password', 'token'):
        (secrets / name).write_text('s3kr1t', encoding='utf-8')
    for block in blocks('ini'):
        kind = block.text.splitlines()[0]
        kinds.append(kind)
        path = Path('example.ini')
        path.write_text(block.text.replace('/run/secrets', str(secrets)), encoding='utf-8')
        if kind == '[app:main]':
            settings = parse_settings(plaster.get_settings(str(path), 'app:main'))
            assert settings.queue_path == str(path.resolve().parent / 'mail')
            mailer = mailer_from_url(
                settings.url,
                hostname=settings.hostname,
                username=settings.username,
                password=settings.password,
            )
            mailers.append(mailer.name)
            continue
        parser = configparser.ConfigParser(interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read_string(block.text)
        if kind == '[loggers]':
            for what in ('logger', 'handler', 'formatter'):
                assert f'{what}_{parser[f"{what}s"]["keys"]}' in parser
            continue
        service = parser['Service'] if kind == '[Unit]' else parser['program:shop-mail']
        assert_runs_processor(service.get('ExecStart') or service['command'])
        assert float(service.get('TimeoutStopSec') or service['stopwaitsecs']) > SHUTDOWN_GRACE
    assert kinds == ['[app:main]'] * 4 + [
        '[Unit]',
        '[program:shop-mail]',
        '[app:main]',
        '[loggers]',
    ]
    for part in ('smtps://relay.example.org:465', 'smtps://other.example.org:465', 'sendmail:'):
        assert part in mailers[1]
    assert mailers[2:4] == ['smtp://smtp.example.com:587', 'lmtp+unix:/run/dovecot/lmtp']


def test_cron() -> None:
    """Five stars, and a command that says nothing unless something is wrong."""
    (block,) = [block for block in blocks('text') if block.section != 'Dovecot']
    match = re.fullmatch(r'(?:\* ){5}(.*)', block.text)
    assert match
    arguments = assert_runs_processor(match[1])
    assert arguments.once
    assert arguments.quiet


def test_dovecot() -> None:
    """Its configuration opens the socket that the settings name, below /run/dovecot."""
    (block,) = [block for block in blocks('text') if block.section == 'Dovecot']
    (ini,) = [block for block in blocks('ini') if block.section == 'Dovecot']
    assert block.text.count('{') == block.text.count('}') == 2
    (socket,) = re.findall(r'unix_listener (\S+) {', block.text)
    assert f'mail.url = lmtp+unix:/run/dovecot/{socket}' in ini.text


def test_every_block_is_tried() -> None:
    """No example is in a language, or in a section, that no test looks at."""
    tried = ('python', 'ini', 'console', 'text')
    assert blocks(*tried) == all_blocks()
    assert len(all_blocks()) == README.read_text(encoding='utf-8').count('.. code-block:: ')
    assert {block.section for block in blocks('python')} == {
        'A token in place of a password',
        *('Use it', 'Sending', 'In Python', 'Events', 'Testing your application'),
    }


# The examples in Python


def test_use_it() -> None:
    """The three lines and the settings make a queued delivery, with nothing on disk yet."""
    with registered() as registry:
        assert verifyObject(interfaces.IQueuedMailDelivery, registry.getUtility(IMailDelivery))
        assert registry.getUtility(IMailQueue).path == str(Path('mail').resolve())
    assert not Path('mail').exists()


def test_sending(capsys: pytest.CaptureFixture[str]) -> None:
    """Each example of the section sends what it says."""
    with registered() as registry:
        namespace: dict[str, Any] = {'registry': registry, 'pdf': b'%PDF'}
        for block in in_section('Sending'):
            request = namespace['request'] = request_of(registry)
            request.tm.begin()
            execute(block, namespace)
            if block.number == 1:
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
    (block,) = [block for block in in_section('Sending') if 'send_now' in block.text]
    (source,) = [block for block in in_section('Sending') if 'EmailMessage()' in block.text]
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


def test_access_token() -> None:
    """The function of the README is what ``token=`` takes."""
    (block,) = in_section('A token in place of a password')
    Path('token.json').write_text('{"access_token": "s3kr1t"}', encoding='utf-8')
    found = Block(block.section, block.language, block.text.replace('/run/secrets/', ''), 1)
    execute(found, namespace := {})
    assert namespace['access_token']() == 's3kr1t'
    sys.modules['myapp.mail'].access_token = namespace['access_token']  # type: ignore[attr-defined]
    source = README.read_text(encoding='utf-8')
    (option,) = re.findall(r'``(token=\S+)``', source)
    assert mailer_from_url(f'smtps://ann@relay?{option}', hostname='shop.example.org')


def test_in_python() -> None:
    """The three directives, with an object, and with a dotted name of a function."""
    config = configurator()
    bound = configurator_delivery()
    sys.modules['myapp.mail'].make_delivery = lambda registry: bound  # type: ignore[attr-defined]
    (block,) = in_section('In Python')
    execute(block, {'config': config})
    config.commit()
    assert config.registry.getUtility(IMailDelivery) is bound
    assert isinstance(config.registry.getUtility(IMailQueue), MaildirQueue)
    assert config.registry.getUtility(IMailer).name == 'null:'


def configurator_delivery() -> Any:
    config = configurator()
    config.commit()
    return config.registry.getUtility(IMailDelivery)


def test_events() -> None:
    """The subscriber writes what was refused, once, and only of mail with its tag."""
    (block,) = in_section('Events')
    execute(block, namespace := {})
    config = configurator(**{'mail.default_sender': 'shop@example.org'})
    config.set_mailer(RELAYS[-1])
    config.include(database)
    namespace['includeme'](config)
    config.commit()
    registry = config.registry
    for address in ('ann@example.org', 'bob@example.org'):
        RELAYS[-1].always(address, Verdict('failed', Reply(550, 'no such user')))
    execute(in_section('Sending')[0], sending := {})
    request = request_of(registry)
    with request.tm:
        sending['sign_up'](request)
        request.mailer.send(
            sending['Message'](subject='Other', to='bob@example.org', text='x', tag='other')
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


def test_outbox() -> None:
    """The test mailer keeps the contract, and has the mail when the request has ended."""
    block, main, memory = in_section('Testing your application')
    config = configurator(**{'mail.default_sender': 'shop@example.org'})
    execute(block, namespace := {'config': config})
    outbox: Any = namespace['outbox']
    assert verifyObject(IMailer, outbox)
    assert verifyObject(IMailSession, outbox)
    execute(in_section('Sending')[0], sending := {})

    def view(request: Any) -> Response:
        return Response(sending['sign_up'](request)['message_id'])

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


def test_dead_letter() -> None:
    """The commands of the README bring a dead letter back, for the recipients that failed."""
    (block,) = [block for block in blocks('console') if 'mv ' in block.text]
    RELAYS[-1].script('ann@example.org', Verdict('failed', Reply(550, 'no such user')))
    with registered() as registry:
        request = request_of(registry)
        execute(in_section('Sending')[0], namespace := {})
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
    README.write_text(with_table(README.read_text(encoding='utf-8')), encoding='utf-8')

"""Access tokens in the loop: the function that returns one never holds up another connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyramid_sendmail.exceptions import MailerUnavailable
from pyramid_sendmail.mailers.failover import FailoverMailer
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.processor.token_request import TokenRequest
from pyramid_sendmail.queue import MemoryQueue
from tests.support.loops import Recorder, SteppedPoller
from tests.support.processors import ProcessorSetup, is_empty, log_levels
from tests.support.queues import until
from tests.support.sessions import PATIENT, make_mailer
from tests.support.smtp.server import ScriptedSMTPServer

USER, TOKEN = 'ann@example.org', 'ya29.a0Af_H6'


class TokenFunction:
    """A function of an application. After ``prompt`` calls it waits for ``going_on``."""

    def __init__(self, prompt: int = 0) -> None:
        self.prompt = prompt
        self.going_on = threading.Event()
        self.threads: list[str] = []
        self.tokens: list[str] = []
        self.error: BaseException | None = None

    def __call__(self) -> str:
        self.threads.append(threading.current_thread().name)
        if len(self.threads) > self.prompt:
            assert self.going_on.wait(10)
        if self.error is not None:
            raise self.error
        return self.tokens.pop(0) if self.tokens else TOKEN


@pytest.fixture
def setup() -> ProcessorSetup:
    return ProcessorSetup(MemoryQueue())


@pytest.fixture
def server(start_smtp_server: Callable[..., ScriptedSMTPServer]) -> ScriptedSMTPServer:
    return start_smtp_server(auth={USER: TOKEN}, auth_mechanisms=('XOAUTH2',), auth_required=True)


@pytest.fixture
def function() -> Iterator[TokenFunction]:
    function = TokenFunction()
    yield function
    function.going_on.set()
    until(lambda: not any('pyramid_sendmail token' in each.name for each in threading.enumerate()))


def mailer_for(server: ScriptedSMTPServer, function: Any, connect: float = 20.0) -> Any:
    return make_mailer(
        server.host,
        server.port,
        tls='none',
        insecure=True,
        username=USER,
        token=function,
        timeouts=PATIENT._replace(connect=connect),
    )


def test_a_token(
    setup: ProcessorSetup, server: ScriptedSMTPServer, function: TokenFunction
) -> None:
    """Each connection presents a token of its own, fetched outside the loop's thread, and the relay
    is remembered all the same."""
    function.going_on.set()
    function.tokens = ['f1rst', 's3cond', 'th1rd']
    server.auth = {USER: 'f1rst'}
    setup.mailer = mailer_for(server, function)
    with setup.running(workers=1, batch=1):
        for count, token in enumerate(('f1rst', 's3cond', 'th1rd'), 1):
            server.auth = {USER: token}
            setup.put()
            server.wait_for(count)
            until(lambda: is_empty(setup))
    assert function.threads == ['pyramid_sendmail token'] * 3
    assert server.verbs().count('AUTH') == server.connections == 3
    assert not server.violations


def test_a_slow_function(
    setup: ProcessorSetup, server: ScriptedSMTPServer, function: TokenFunction
) -> None:
    """It holds up no mail of other connections, and no other call of it is begun meanwhile."""
    function.prompt = 1
    setup.mailer = mailer_for(server, function)
    with setup.running(workers=4):
        setup.put()
        server.wait_for(1)
        setup.put_many(30)
        server.wait_for(31)
        until(lambda: len(function.threads) == 2)
        setup.put()
        server.wait_for(32)
        assert (server.connections, len(function.threads)) == (1, 2)
        function.going_on.set()
        server.wait_for(lambda server: server.verbs().count('AUTH') > 1)
    assert max(server.pairs().values()) == 1
    assert is_empty(setup)


@pytest.mark.parametrize('once', [True, False])
def test_a_function_that_does_not_return(
    setup: ProcessorSetup,
    server: ScriptedSMTPServer,
    function: TokenFunction,
    caplog: pytest.LogCaptureFixture,
    once: bool,
) -> None:
    """The relay is unavailable after the time-out to connect, no attempt is counted, and mail
    leaves as soon as another call returns."""
    setup.dispatcher = type(setup.dispatcher)('sent', 'deferred')
    setup.mailer = mailer_for(server, function, connect=0.2)
    text = (
        f'{setup.mailer.name}: AUTH: there is no token: the function has not returned within '
        '0.2 s; see the user name, and token_file= or token= in mail.url'
    )
    setup.put_many(5)
    if once:
        with pytest.raises(MailerUnavailable) as caught:
            setup.processor(workers=4).run_once()
        assert str(caught.value) == text
        assert len(setup.queue) == 5
    with setup.running(workers=4):
        until(lambda: text in caplog.text)
        function.prompt = 1000
        server.wait_for(5)
        until(lambda: len(setup.dispatcher.pending_events) == 5)
    assert log_levels(caplog, text)[0] == 'ERROR'
    assert [(each.kind, each.attempt) for each in setup.dispatcher.pending_events] == [
        ('sent', 1)
    ] * 5
    assert 'Traceback' not in caplog.text


@pytest.mark.parametrize('error', [OSError('the token service is down'), SystemExit('bye')])
def test_a_function_that_raises(
    setup: ProcessorSetup,
    server: ScriptedSMTPServer,
    function: TokenFunction,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    """The relay is unavailable until it raises no longer; nothing is connected in between."""
    function.going_on.set()
    function.error = error
    setup.mailer = mailer_for(server, function)
    with setup.running(workers=4):
        setup.put_many(5)
        until(lambda: 'relay unavailable, mail stays queued' in caplog.text)
        assert not server.connections
        function.error = None
        server.wait_for(5)
    assert f'AUTH: there is no token: {error} ({type(error).__name__}); see ' in caplog.text
    assert 'Traceback' not in caplog.text


def test_the_next_relay(
    setup: ProcessorSetup,
    server: ScriptedSMTPServer,
    smtp_server: ScriptedSMTPServer,
    function: TokenFunction,
) -> None:
    """Mail leaves by another relay if there is no token for the first."""
    other = make_mailer(smtp_server.host, smtp_server.port)
    first = mailer_for(server, function, connect=0.2)
    setup.mailer = FailoverMailer([first, other])  # type: ignore[assignment]
    setup.put_many(5)
    assert setup.processor(workers=2).run_once().delivered == 5
    assert (server.connections, len(smtp_server.messages)) == (0, 5)


def test_two_functions(
    setup: ProcessorSetup,
    server: ScriptedSMTPServer,
    start_smtp_server: Callable[..., ScriptedSMTPServer],
    function: TokenFunction,
) -> None:
    """A function that does not return keeps no other relay from its token."""
    second = start_smtp_server(auth={USER: TOKEN}, auth_mechanisms=('XOAUTH2',))
    mailers: list[Any] = [
        mailer_for(server, function, connect=0.2),
        mailer_for(second, lambda: TOKEN),
    ]
    setup.mailer = FailoverMailer(mailers)  # type: ignore[assignment]
    setup.put_many(5)
    assert setup.processor(workers=2).run_once().delivered == 5
    assert [each.authenticated_as for each in second.messages] == [USER] * 5


@pytest.mark.parametrize('once', [True, False])
def test_stop(
    setup: ProcessorSetup, server: ScriptedSMTPServer, function: TokenFunction, once: bool
) -> None:
    """A processor that ends waits for no token, and takes none that comes later."""
    setup.mailer = mailer_for(server, function)
    setup.put_many(3)
    processor, stop = setup.processor(workers=3, grace=60), threading.Event()
    call = (lambda: processor.run_once(stop=stop)) if once else (lambda: processor.run(stop))
    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: function.threads)
    stop.set()
    processor.wake()
    thread.join(10)
    assert not thread.is_alive()
    function.going_on.set()
    until(lambda: 'pyramid_sendmail loop' not in [each.name for each in threading.enumerate()])
    assert (server.connections, len(setup.queue)) == (0, 3)


# By hand


class Opened:
    """Records the mailers that a token came for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.mailers: list[SMTPMailer] = []
        self.error = error

    def __call__(self, mailer: SMTPMailer) -> None:
        self.mailers.append(mailer)
        if self.error is not None:
            raise self.error


@pytest.fixture
def poller() -> Iterator[SteppedPoller]:
    poller = SteppedPoller()
    yield poller
    poller.close()


def request_for(
    poller: SteppedPoller, function: Any, opened: Opened
) -> tuple[TokenRequest, SMTPMailer, Recorder]:
    mailer = make_mailer('192.0.2.1', tls='none', insecure=True, username=USER, token=function)
    assert mailer.bearer is not None
    sender = Recorder()
    request = TokenRequest(poller, mailer, mailer.bearer, sender, opened)
    request.open()
    return request, mailer, sender


def test_one_mailer_for_each_token(poller: SteppedPoller) -> None:
    """The mailer that presents the token is the same otherwise, and has no function; the one that
    has it keeps it."""
    opened = Opened()
    request, mailer, sender = request_for(poller, lambda: TOKEN, opened)
    poller.until(lambda: opened.mailers)
    [presenting] = opened.mailers
    assert (request.state, sender.said) == ('closed', [])
    assert presenting.bearer is None
    assert mailer.bearer is not None
    assert (presenting.name, type(presenting)) == (mailer.name, type(mailer))
    assert presenting.address is mailer.address
    assert presenting._memory is mailer._memory
    assert TOKEN not in f'{vars(presenting)!r} {vars(request)!r}'


def test_a_token_that_comes_late(poller: SteppedPoller, function: TokenFunction) -> None:
    """Nothing is connected with it."""
    opened = Opened()
    request, mailer, sender = request_for(poller, function, opened)
    poller.later(mailer.timeouts.connect - 1)
    assert (request.state, sender.said) == ('fetching', [])
    poller.later(1)
    assert (request.state, sender.said) == ('closed', ['unavailable'])
    function.going_on.set()
    poller.until(lambda: not poller.token_fetcher._hung.total())
    poller.step()
    poller.later(1000)
    assert (opened.mailers, sender.said) == ([], ['unavailable'])


def test_a_connection_that_cannot_be_opened(poller: SteppedPoller) -> None:
    """What opening it raises is a matter of its sender, and not of the loop."""
    opened = Opened(ZeroDivisionError())
    _, _, sender = request_for(poller, lambda: TOKEN, opened)
    poller.until(lambda: sender.said)
    assert sender.said == ['failed']
    assert sender.errors == [opened.error]

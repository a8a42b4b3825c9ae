"""Fetching access tokens in helper threads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pyramid_sendmail.mailers.smtp.authentication import Bearer, BearerProof
from pyramid_sendmail.mailers.smtp.token_fetcher import MAX_HUNG_CALLS, TokenFetcher
from pyramid_sendmail.threads import BackgroundThread
from tests.support.queues import until

TOKEN = 'ya29.a0Af_H6'


class TokenFunction:
    """A function of an application, which waits until a test lets it go on."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.going_on = threading.Event()
        self.going_on.set()
        self.error: BaseException | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenFunction)

    def __call__(self) -> str:
        self.threads.append(threading.current_thread())
        assert self.going_on.wait(10)
        if self.error is not None:
            raise self.error
        return TOKEN


class Mailbox(queue.Queue[Any]):
    """Keeps what was delivered."""

    def take(self) -> Any:
        return self.get(timeout=10)


@pytest.fixture
def function() -> Iterator[TokenFunction]:
    function = TokenFunction()
    yield function
    function.going_on.set()
    until(lambda: not threads())


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == 'pyramid_sendmail token']


def test_a_token(function: TokenFunction) -> None:
    """It is fetched in a daemon thread of this package, once for each request, and shown by no
    repr."""
    mailbox, fetcher, bearer = Mailbox(), TokenFetcher(), Bearer('ann@example.org', function)
    for count in (1, 2):
        fetcher.fetch(bearer, mailbox.put)
        proof = mailbox.take()
        assert isinstance(proof, BearerProof)
        assert TOKEN in proof.secrets
        assert TOKEN not in f'{proof!r} {vars(fetcher)!r}'
        assert len(function.threads) == count
        until(lambda: not threads())
    thread = function.threads[0]
    assert isinstance(thread, BackgroundThread)
    assert thread.daemon


def test_requests_share_a_call(function: TokenFunction) -> None:
    """A function runs in one thread at a time, and nothing waits for that of another mailer, even
    one that is equal."""
    function.going_on.clear()
    mailbox, fetcher, bearer = Mailbox(), TokenFetcher(), Bearer('ann', function)
    for _ in range(20):
        fetcher.fetch(bearer, mailbox.put)
    assert mailbox.empty()
    other = TokenFunction()
    fetcher.fetch(Bearer('ann', other), mailbox.put)
    assert isinstance(mailbox.take(), BearerProof)
    assert len(function.threads) == len(other.threads) == 1
    function.going_on.set()
    assert len({mailbox.take() for _ in range(20)}) == 1
    assert len(function.threads) == 1


@pytest.mark.parametrize(
    ('error', 'text'),
    [
        (OSError('the token service\nis down'), 'the token service is down (OSError)'),
        (KeyError('access_token'), "'access_token' (KeyError)"),
        (SystemExit('bye'), 'bye (SystemExit)'),
        (KeyboardInterrupt(), '(KeyboardInterrupt)'),
    ],
)
def test_a_function_that_raises(function: TokenFunction, error: BaseException, text: str) -> None:
    """Whatever it raises is delivered in words, and the next request calls it again."""
    mailbox, fetcher, bearer = Mailbox(), TokenFetcher(), Bearer('ann', function)
    function.error = error
    fetcher.fetch(bearer, mailbox.put)
    assert mailbox.take() == f'there is no token: {text}'
    function.error = None
    fetcher.fetch(bearer, mailbox.put)
    assert isinstance(mailbox.take(), BearerProof)


@pytest.mark.parametrize('token', ['', 'two words', 'a\nb', None, b'bytes'])
def test_what_is_no_token(token: Any) -> None:
    """It is not presented, and not shown."""
    mailbox = Mailbox()
    TokenFetcher().fetch(Bearer('ann', lambda: token), mailbox.put)
    text = mailbox.take()
    assert 'what it returned is no access token' in text
    assert not token or str(token) not in text


def test_calls_that_do_not_return(function: TokenFunction) -> None:
    """The next request makes another call, up to a number; when they have returned, there are
    tokens again."""
    function.going_on.clear()
    mailbox, fetcher, bearer = Mailbox(), TokenFetcher(), Bearer('ann', function)
    for count in range(1, MAX_HUNG_CALLS + 1):
        fetcher.fetch(bearer, mailbox.put)
        until(lambda count=count: len(function.threads) == count)
        fetcher.give_up(bearer)
    assert mailbox.empty()
    fetcher.fetch(bearer, mailbox.put)
    assert mailbox.take() == (
        f'there is no token: {MAX_HUNG_CALLS} calls of the function have not returned'
    )
    assert len(function.threads) == MAX_HUNG_CALLS
    function.going_on.set()
    until(lambda: not threads())
    assert mailbox.qsize() == MAX_HUNG_CALLS
    mailbox.queue.clear()
    for _ in range(MAX_HUNG_CALLS + 1):
        fetcher.fetch(bearer, mailbox.put)
        assert isinstance(mailbox.take(), BearerProof)


def test_a_call_that_has_returned_is_not_given_up(function: TokenFunction) -> None:
    """That changes nothing."""
    mailbox, fetcher, bearer = Mailbox(), TokenFetcher(), Bearer('ann', function)
    for _ in range(MAX_HUNG_CALLS + 1):
        fetcher.fetch(bearer, mailbox.put)
        assert isinstance(mailbox.take(), BearerProof)
        fetcher.give_up(bearer)
    assert mailbox.empty()


def test_no_thread_can_be_started(function: TokenFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is delivered at once; the next request tries again."""
    mailbox, fetcher, bearer = Mailbox(), TokenFetcher(), Bearer('ann', function)

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(BackgroundThread, 'start', start)
        fetcher.fetch(bearer, mailbox.put)
    assert "can't start new thread" in mailbox.get_nowait()
    fetcher.fetch(bearer, mailbox.put)
    assert isinstance(mailbox.take(), BearerProof)


def test_no_frame_shows_a_token(function: TokenFunction) -> None:
    """A callback that raises has a traceback without the token in it."""
    shown: list[str] = []

    def deliver(_fetched: object) -> None:
        raise ZeroDivisionError

    def hook(arguments: threading.ExceptHookArgs) -> None:
        traceback = arguments.exc_traceback
        while traceback is not None:
            shown.append(repr(traceback.tb_frame.f_locals))
            traceback = traceback.tb_next

    before, threading.excepthook = threading.excepthook, hook
    try:
        TokenFetcher().fetch(Bearer('ann', function), deliver)
        until(lambda: shown and not threads())
    finally:
        threading.excepthook = before
    assert any('BearerProof(...)' in text for text in shown)
    assert TOKEN not in ' '.join(shown)

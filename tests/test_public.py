"""The public names: what users import, what errors derive from, and that interfaces are kept."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.resources import files
from pkgutil import walk_packages
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

import pytest
from zope.interface import Interface
from zope.interface.verify import verifyClass

import pyramid_sendmail
from pyramid_sendmail import exceptions, interfaces, message, queue
from pyramid_sendmail.delivery.direct import DirectMailDelivery
from pyramid_sendmail.delivery.queued import BoundMailDelivery, QueuedMailDelivery
from pyramid_sendmail.envelope import Report
from pyramid_sendmail.events.dispatcher import EventDispatcher
from pyramid_sendmail.mailers.file import FileMailer, FileSession
from pyramid_sendmail.mailers.null import NullMailer, NullSession
from pyramid_sendmail.mailers.smtp.mailer import SMTPMailer
from pyramid_sendmail.mailers.smtp.session import SMTPSession
from pyramid_sendmail.processor.processor import QueueProcessor
from pyramid_sendmail.queue import MaildirQueue, MemoryQueue
from pyramid_sendmail.queue.maildir.claim import MaildirClaim
from pyramid_sendmail.queue.maildir.staging import StagedMail
from pyramid_sendmail.queue.memory import MemoryClaim, MemoryStagedMail

PUBLIC = {
    *('Address', 'Attachment', 'Message', 'includeme'),
    *('SendmailError', 'MessageError', 'NoActiveTransaction', 'QueueError'),
    *('MailerUnavailable', 'MailRefused', 'MailAmbiguous'),
}


@pytest.mark.parametrize('value', [message.Message, message.Attachment])
def test_annotations_can_be_evaluated(value: type) -> None:
    """Programs that make forms, schemas or documentation of our values can evaluate their types."""
    hints = get_type_hints(value)
    assert hints.keys() == value.__dataclass_fields__.keys()  # type: ignore[attr-defined]
    assert inspect.signature(value, eval_str=True).parameters.keys() == hints.keys()


MODULES = [
    pyramid_sendmail.__name__,
    *(each.name for each in walk_packages(pyramid_sendmail.__path__, 'pyramid_sendmail.')),
]


def functions_of(value: object) -> list[object]:
    """Return the functions behind a method or a property, or the value itself."""
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, cached_property):
        return [value.func]
    if isinstance(value, classmethod | staticmethod):
        value = value.__func__
    return [inspect.unwrap(value)] if callable(value) else []


def annotated(scope: type | ModuleType, module: str) -> Iterator[type | FunctionType]:
    """Yield each class, function and method that stands in a module or class, private ones too."""
    for value in vars(scope).values():
        for found in functions_of(value):
            if isinstance(found, type | FunctionType) and found.__module__ == module:
                yield found
                if isinstance(found, type):
                    yield from annotated(found, module)


@pytest.mark.parametrize('name', MODULES)
def test_every_annotation_can_be_evaluated(name: str) -> None:
    """``typing.get_type_hints`` knows the types of each module, class, function and method."""
    module = import_module(name)
    get_type_hints(module)
    for each in annotated(module, name):
        get_type_hints(each)


def test_the_annotated_are_found() -> None:
    """Methods, properties and private functions are among what is evaluated."""
    name = 'pyramid_sendmail.delivery.queued'
    found = {each.__qualname__ for each in annotated(import_module(name), name)}
    assert {'SendOptions', 'BoundMailDelivery.send', 'QueuedMailDelivery.queue'} <= found


def test_modules_of_the_public_names() -> None:
    """``import pyramid_sendmail`` alone makes the modules of the public names available."""
    names = 'import pyramid_sendmail as p; print(p.exceptions.__name__, p.message.__name__)'
    run = subprocess.run([sys.executable, '-c', names], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ['pyramid_sendmail.exceptions', 'pyramid_sendmail.message']


def test_public_names() -> None:
    """``__all__`` lists exactly the promised names, each of which has a docstring."""
    assert set(pyramid_sendmail.__all__) == PUBLIC
    for name in PUBLIC:
        # Address is that of the standard library, which has none.
        assert getattr(pyramid_sendmail, name).__doc__ or name == 'Address'


@pytest.mark.parametrize('package', [pyramid_sendmail, message, queue])
def test_listed_names_exist(package: ModuleType) -> None:
    """Each name in ``__all__`` can be imported."""
    for name in package.__all__:
        assert getattr(package, name) is not None


@pytest.mark.parametrize(
    ('error', 'builtin'),
    [
        (exceptions.MessageError, ValueError),
        (exceptions.NoActiveTransaction, RuntimeError),
        (exceptions.QueueError, OSError),
        (exceptions.DamagedMail, ValueError),
        (exceptions.MailerUnavailable, ConnectionError),
        (exceptions.MailRefused, OSError),
        (exceptions.MailAmbiguous, exceptions.MailRefused),
    ],
)
def test_errors_on_two_axes(error: type[Exception], builtin: type[Exception]) -> None:
    """Each error derives from SendmailError and from the builtin that comes nearest."""
    assert issubclass(error, exceptions.SendmailError)
    assert issubclass(error, builtin)


def test_every_error_is_listed() -> None:
    """``exceptions.__all__`` lists every error of the module."""
    own = {
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert own == set(exceptions.__all__)


def test_errors_carry_what_they_say() -> None:
    """Errors carry a refusal's report, a damaged file's bytes, an OSError's number."""
    report = Report('<1@example.org>', (), {'ann@example.org': None}, None)
    assert exceptions.MailAmbiguous('no answer', report).report is report
    assert str(exceptions.MailRefused('550 no', report)) == '550 no'
    damaged = exceptions.DamagedMail('1-2', 'torn', b'x')
    assert (str(damaged), damaged.name, damaged.raw) == ('1-2: torn', '1-2', b'x')
    full = exceptions.QueueError(28, 'the queue is full', '/srv/mail')
    assert (full.errno, full.filename) == (28, '/srv/mail')
    assert exceptions.MailerUnavailable('gone').stale is False
    assert exceptions.MailerUnavailable('gone', stale=True).stale is True


@pytest.mark.parametrize(
    ('made', 'interface'),
    [
        (QueuedMailDelivery, interfaces.IQueuedMailDelivery),
        (DirectMailDelivery, interfaces.IDirectMailDelivery),
        (BoundMailDelivery, interfaces.IMailDelivery),
        (MaildirQueue, interfaces.IScannableQueue),
        (MemoryQueue, interfaces.IScannableQueue),
        (StagedMail, interfaces.IStagedMail),
        (MemoryStagedMail, interfaces.IStagedMail),
        (MaildirClaim, interfaces.IMailClaim),
        (MemoryClaim, interfaces.IMailClaim),
        (SMTPMailer, interfaces.ISMTPMailer),
        (FileMailer, interfaces.IMailer),
        (NullMailer, interfaces.IMailer),
        (SMTPSession, interfaces.IMailSession),
        (FileSession, interfaces.IMailSession),
        (NullSession, interfaces.IMailSession),
        (QueueProcessor, interfaces.IMailQueueProcessor),
        (EventDispatcher, interfaces.IMailEventDispatcher),
    ],
)
def test_interfaces_are_kept(made: type, interface: type[Interface]) -> None:
    """Each class has every method of its interface, with the arguments."""
    assert verifyClass(interface, made, tentative=not interface.implementedBy(made))


def test_interfaces_are_the_manual() -> None:
    """Each interface, and each of its methods, has a docstring."""
    for name in interfaces.__all__:
        interface: Any = getattr(interfaces, name)
        assert interface.__doc__, name
        for method, description in interface.namesAndDescriptions():
            assert description.__doc__, f'{name}.{method}'


def test_send_options_are_keywords() -> None:
    """``send`` takes the message, and its options by name only; ``key`` comes later."""
    parameters = inspect.signature(BoundMailDelivery.send).parameters
    kinds = {name: each.kind for name, each in parameters.items() if name != 'self'}
    assert kinds.pop('message') is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}
    assert set(kinds) == {
        *('sender', 'recipients', 'due', 'expires', 'priority', 'metadata', 'cause'),
    }


def test_typed() -> None:
    """The package has py.typed, so type checkers read its annotations."""
    assert files('pyramid_sendmail').joinpath('py.typed').is_file()

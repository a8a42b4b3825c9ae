"""The request of an event: subscribers run where no request has come in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyramid.interfaces import IRequestExtensions, IRequestFactory
from pyramid.registry import Registry
from pyramid.request import Request, apply_request_extensions
from pyramid.threadlocal import RequestContext

__all__ = ['EventRequests']


class EventRequests:
    """Requests made by the application's request factory, with its extensions.

    Pyramid makes a class for each request, with the properties that extensions give it. That costs
    more than everything else about an event: here requests share the class that Pyramid has made
    for the first one.

    ``base_url``: what the URLs that they make begin with; '' for Pyramid's http://localhost.
    """

    def __init__(self, registry: Registry, base_url: str = '') -> None:
        self._registry = registry
        self._options = {'base_url': base_url} if base_url else {}
        self._classes: dict[type, tuple[Mapping[str, object], type]] = {}

    @contextmanager
    def event_request(self) -> Iterator[Request]:
        """Push a new request on the thread's stack; at the end run its finished callbacks."""
        factory = self._registry.queryUtility(IRequestFactory, default=Request)
        request = factory.blank('/', **self._options)
        request.registry = self._registry
        with RequestContext(request):
            self._extend(request)
            try:
                yield request
            finally:
                # Private, as of Pyramid 2.0 (a test holds it): its router and
                # pyramid.scripting.prepare() call the same method.
                request._process_finished_callbacks()

    def _extend(self, request: Request) -> None:
        extensions = self._registry.queryUtility(IRequestExtensions)
        plain = type(request)
        known, extended = self._classes.get(plain, (None, plain))
        if extensions is None or known != extensions.descriptors:
            apply_request_extensions(request)
            if extensions is not None:
                self._classes[plain] = dict(extensions.descriptors), type(request)
            return
        for name, function in extensions.methods.items():
            setattr(request, name, function.__get__(request, plain))
        request.__class__ = extended

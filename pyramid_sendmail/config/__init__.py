"""The directives, and what the settings give."""

from .factories import add_directives, processor_of

__all__ = ['add_directives', 'processor_of']

"""What ``config.include('pyramid_sendmail')`` adds: the directives, and what the settings give.

===============  ===========================================================================
``directives``   ``config.set_mailer`` and the like; the order of the actions
``factories``    the mailer, queue, delivery and queue processor that the settings describe
===============  ===========================================================================
"""

from .directives import add_directives
from .factories import processor_of

__all__ = ['add_directives', 'processor_of']

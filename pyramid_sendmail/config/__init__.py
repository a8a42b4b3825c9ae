"""What ``config.include('pyramid_sendmail')`` adds: the directives, and what the settings give.

==================  ===========================================================================
``directives``      ``config.set_mailer`` and the like; the order of the actions
``factories``       the mailer, queue, delivery and queue processor that the settings describe
``queue_check``     whether that queue can be used, as far as a look can tell
``warnings``        of settings that work, and may lose mail
``pyramid_mailer``  the add-on, if an application includes it beside this one
==================  ===========================================================================
"""

from .directives import add_directives
from .factories import processor_of

__all__ = ['add_directives', 'processor_of']

"""What a scripted server says when nothing else is scripted."""

from __future__ import annotations

from tests.support.smtp.actions import Raw, Reply

__all__ = [
    'ABSENT',
    'FINE',
    'GOODBYE',
    'GO_ON',
    'MECHANISM',
    'NOBODY',
    'NOTHING',
    'ORDER',
    'PARAMETER',
    'READY',
    'RECIPIENT_FINE',
    'REFUSED',
    'SENDER_FINE',
    'SYNTAX',
    'TOO_BIG',
    'UNENCRYPTED',
    'UNKNOWN',
    'WELCOME',
    'WHO',
]

NOTHING = Raw(b'')
READY = Reply(220, ('2.0.0 ready to start TLS',))
GOODBYE = Reply(221, ('2.0.0 goodbye',))
WELCOME = Reply(235, ('2.7.0 authenticated',))
FINE = Reply(250, ('2.0.0 OK',))
SENDER_FINE = Reply(250, ('2.1.0 OK',))
RECIPIENT_FINE = Reply(250, ('2.1.5 OK',))
GO_ON = Reply(354, ('End data with <CR><LF>.<CR><LF>',))
UNKNOWN = Reply(500, ('5.5.2 command unrecognised',))
SYNTAX = Reply(501, ('5.5.4 syntax error in parameters',))
ABSENT = Reply(502, ('5.5.1 command not implemented',))
ORDER = Reply(503, ('5.5.1 bad sequence of commands',))
MECHANISM = Reply(504, ('5.5.4 mechanism not offered',))
WHO = Reply(530, ('5.7.0 authentication required',))
REFUSED = Reply(535, ('5.7.8 authentication failed',))
UNENCRYPTED = Reply(538, ('5.7.11 encryption required',))
TOO_BIG = Reply(552, ('5.3.4 message too big',))
NOBODY = Reply(554, ('5.5.1 no valid recipients',))
PARAMETER = Reply(555, ('5.5.4 parameter not offered',))

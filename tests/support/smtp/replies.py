"""Default replies of a scripted server."""

from __future__ import annotations

from .actions import Raw, Reply

__all__ = [
    'AUTHENTICATED',
    'AUTH_FAILED',
    'AUTH_REQUIRED',
    'BAD_SEQUENCE',
    'BAD_SYNTAX',
    'ENCRYPTION_REQUIRED',
    'GOODBYE',
    'MESSAGE_TOO_BIG',
    'NOT_IMPLEMENTED',
    'NO_RECIPIENTS',
    'NO_REPLY',
    'OK',
    'READY_FOR_TLS',
    'RECIPIENT_OK',
    'SENDER_OK',
    'START_INPUT',
    'UNKNOWN_COMMAND',
    'UNKNOWN_MECHANISM',
    'UNKNOWN_PARAMETER',
]

NO_REPLY = Raw(b'')
READY_FOR_TLS = Reply(220, ('2.0.0 ready to start TLS',))
GOODBYE = Reply(221, ('2.0.0 goodbye',))
AUTHENTICATED = Reply(235, ('2.7.0 authenticated',))
OK = Reply(250, ('2.0.0 OK',))
SENDER_OK = Reply(250, ('2.1.0 OK',))
RECIPIENT_OK = Reply(250, ('2.1.5 OK',))
START_INPUT = Reply(354, ('End data with <CR><LF>.<CR><LF>',))
UNKNOWN_COMMAND = Reply(500, ('5.5.2 command unrecognised',))
BAD_SYNTAX = Reply(501, ('5.5.4 syntax error in parameters',))
NOT_IMPLEMENTED = Reply(502, ('5.5.1 command not implemented',))
BAD_SEQUENCE = Reply(503, ('5.5.1 bad sequence of commands',))
UNKNOWN_MECHANISM = Reply(504, ('5.5.4 mechanism not offered',))
AUTH_REQUIRED = Reply(530, ('5.7.0 authentication required',))
AUTH_FAILED = Reply(535, ('5.7.8 authentication failed',))
ENCRYPTION_REQUIRED = Reply(538, ('5.7.11 encryption required',))
MESSAGE_TOO_BIG = Reply(552, ('5.3.4 message too big',))
NO_RECIPIENTS = Reply(554, ('5.5.1 no valid recipients',))
UNKNOWN_PARAMETER = Reply(555, ('5.5.4 parameter not offered',))

"""SMTP and LMTP.

===================  =========================================================================
``mailer``           SMTPMailer: what a connection needs, and a session that blocks
``lmtp``             LMTPMailer: the same for LMTP, over TCP or a Unix socket
``address``          where the relay listens, and the socket to it
``resolver``         host names, looked up in a helper thread
``connect_race``     connect to the first of several addresses that answers
``options``          what a caller may choose: TLS, time-outs, how to speak
``tls``              TLS contexts, and what to do when a handshake fails
``token_fetcher``    access tokens, fetched in helper threads
``authentication``   user names, passwords and access tokens (AUTH)
``protocol``         SMTP and LMTP without input and output
``session``          SMTPSession: the driver of the protocol that blocks
``connection``       SMTPConnection: a socket, TLS and time-outs, for that driver
``nonblocking``      a socket that never blocks, with TLS, for the queue processor's loop
===================  =========================================================================
"""

from .lmtp import LMTPMailer
from .mailer import SMTPMailer

__all__ = ['LMTPMailer', 'SMTPMailer']

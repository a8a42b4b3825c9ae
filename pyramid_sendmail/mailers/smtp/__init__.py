"""SMTP and LMTP.

===================  =========================================================================
``mailer``           SMTPMailer: connect, TLS, authentication; then a session
``lmtp``             LMTPMailer: the same for LMTP, over TCP or a Unix socket
``address``          where the relay listens, and the socket to it
``options``          what a caller may choose: TLS, time-outs, how to speak
``tls``              TLS contexts, and what to do when a handshake fails
``authentication``   user names, passwords and access tokens (AUTH)
``session``          SMTPSession: mail after mail on one connection
``chunking``         ChunkingSession: several mails in flight (CHUNKING)
``transaction``      one mail on its way through a session
``extensions``       what the relay offers, the commands, the meaning of replies
``connection``       SMTPConnection: commands out, replies in, time-outs
``dot_stuffing``     the text of a mail as it follows DATA
===================  =========================================================================
"""

from .lmtp import LMTPMailer
from .mailer import SMTPMailer

__all__ = ['LMTPMailer', 'SMTPMailer']

"""SMTP and LMTP without input and output: bytes in, bytes and outcomes out.

Nothing here knows a socket, a clock or a thread; a driver moves the bytes and keeps the time.
``..session`` is the driver that blocks, and ``processor.loop_connection`` the one that does not.
docs/explanation/protocol.rst says how to drive it, and what a driver promises.

===================  =========================================================================
``client``           SMTPClient: what a driver talks to
``opening``          from the greeting to the first mail: EHLO, STARTTLS, AUTH
``transfer``         mail after mail: which command may leave, what a reply means
``common_exchange``  the same for nearly all mail: one recipient, and each is accepted
``state``            what the mail transactions of a session share
``flight``           several mails in flight, by CHUNKING
``transaction``      one mail on its way, and what is known of its recipients
``replies``          bytes from the relay to replies
``extensions``       what the relay offers, the commands, the meaning of replies
``relay_memory``     what sessions have learned about a relay
``text``             the text of a mail on its way out, by DATA
``dot_stuffing``     dots at line starts doubled
===================  =========================================================================

What a reply means for the mail's recipients and for the session:

=============================  =============================================================
reply                          outcome
=============================  =============================================================
421, 530, 534, 535, 538,       the session ends, and the mail is untouched; after a refused
454 4.7.x, up to DATA          recipient on a fresh connection: deferred
452 to MAIL                    the session has sent as much as the relay allows: a stale
                               connection, if it has answered for a mail before; else deferred
500, 502, 503, 504 to MAIL,    about the command and not about a recipient: the session ends,
or to every RCPT               and the mail is untouched; deferred if others are accepted
503 to a command behind a      the relay wants to be waited for: the same mail once more, and
final dot                      no command behind a final dot from then on
lost before MAIL's reply       the session ends, and the mail is untouched
lost before the final dot      untouched on a connection that has answered for a mail before,
                               which was stale; else deferred
lost after the final dot       ambiguous for the accepted recipients
4xx, 5xx to MAIL               deferred, failed: every recipient
4xx, 5xx to RCPT               deferred, failed: this recipient
4xx, 5xx to DATA, final dot    deferred, failed: the accepted recipients
2xx to the final dot           delivered: the accepted recipients
=============================  =============================================================

Only the first digit of other codes counts (RFC 5321, 4.2.1); ``sending.throttling`` reads the words
of deferred ones. A time-out, a line that is no reply, a reply that makes no sense in its place and
one without a command count as a lost connection. By LMTP each accepted recipient has a reply of its
own to the final dot.

Which command may leave is a matter of three policies; what a reply means is not:

=================  ===============================================================================
lock-step          a command leaves when the one before has its reply
PIPELINING         commands leave in groups (RFC 2920), and the next mail's together with the final
                   dot, so that a mail costs one round trip
CHUNKING, window   BDAT announces the length of a text, so that MAIL, RCPT, BDAT and text leave for
                   one mail after the other without waiting
=================  ===============================================================================

With a window the first mail waits for the replies to its RCPTs before its text leaves: if the
connection has died unnoticed, no mail is in doubt. RSET stands in front of each MAIL: a relay that
refused a transaction reads the text that comes anyway, and refuses it as well. Large mail, and mail
to many recipients, goes by DATA while nothing is in flight. If the connection is lost, a mail whose
text may have left whole is ambiguous, and so are those behind it; a mail whose text has not left,
or behind which the relay announced by 421 that it closes, is untouched.

A mail to more recipients than the relay takes at once needs several mail transactions. From the
second on it is not untouched any more: a lost connection or a session failure defers the recipients
that are left.
"""

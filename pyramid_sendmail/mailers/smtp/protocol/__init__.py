"""SMTP and LMTP without input and output: bytes in, bytes and outcomes out.

Nothing here knows a socket, a clock or a thread; a driver moves the bytes and keeps the time.
``..session`` is the driver that blocks, and ``processor.loop_connection`` the one that does not.
docs/explanation/protocol.rst says how to drive it, and what a driver promises.

===================  =========================================================================
``client``           SMTPClient: what a driver talks to
``opening``          from the greeting to the first mail: EHLO, STARTTLS, AUTH
``transfer``         mail after mail: which command may leave, what a reply means
``transaction``      one mail on its way, and what is known of its recipients
``replies``          bytes from the relay to replies
``extensions``       what the relay offers, the commands, the meaning of replies
``relay_memory``     what sessions have learned about a relay
``dot_stuffing``     the text of a mail as it follows DATA
===================  =========================================================================
"""

"""A scripted SMTP server for tests, and what belongs to it.

===================  =========================================================================
``server``           ScriptedSMTPServer, and all other names that a test needs
``fixtures``         pytest fixtures for the server, the proxy and certificates
``actions``          what the server does when a command arrives, as values; the script
``replies``          the default replies
``session``          one connection: commands and their state
``dialogue``         reading strictly, performing actions
``authentication``   AUTH
``parsers``          reading a message's bytes, strictly and laxly
``channel``          sockets: the listener, one connection with TLS
``proxy``            CuttingProxy: cuts connections after a number of bytes
``tls``              TLSAuthority: certificates, valid and invalid
``client``           a client that writes any bytes, to test the server itself
``strict_reader``    what is wrong with a message by the RFCs (not about SMTP)
``model_relay``      a model of a relay without a socket, which knows who has had what
``wire_rules``       what a client may write, and when
``links``            a driver of SMTPClient that moves bytes to the model and back
``drains``           all mail to the model, over as many connections as it takes
===================  =========================================================================

Its modules import nothing else of the tests, and nothing of pyramid_sendmail but in ``drains``.
"""

"""Mailers: how an envelope leaves this machine.

===================  =========================================================================
``factory``          the mailer for the text of ``mail.url``
``url``              the parts of one URL
``schemes``          one function a scheme: from the parts of a URL to a mailer
``smtp``             SMTP and LMTP (a folder with a map of its own)
``sendmail``         a local program
``file``             a Maildir of ``.eml`` files
``null``             nothing: accepts every mail and drops it
``failover``         several mailers, in order of preference
``attempts``         which of them to connect with, for a driver that does not block
``session``          what the sessions of all mailers share
``path_syntax``      whether an address may stand in an SMTP command
===================  =========================================================================
"""

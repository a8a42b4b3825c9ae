"""Real mail servers: Debian's Postfix, Exim, OpenSMTPD and Dovecot, each in a root directory of its
own.

``tests/peers/install`` unpacks them into the folder that ``MAIL_PEERS`` names in the environment,
/var/cache/mail-peers where it does not. To run them needs root, for chroot. Where either is
missing the tests are skipped, and say so.
"""

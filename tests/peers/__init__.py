"""Real mail servers: Debian's Postfix, Exim, OpenSMTPD and Dovecot, each in a root directory of its
own; and Haraka, smtp-server and MailDev, which Node.js runs.

``tests/peers/install`` unpacks the first and ``tests/peers/install-node`` installs the others into
the folder that ``MAIL_PEERS`` names in the environment, /var/cache/mail-peers where it does not. To
run the first needs root, for chroot. Where either is missing the tests are skipped, and say so.
"""

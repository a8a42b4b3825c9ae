"""How an envelope leaves this machine: by SMTP, into a Maildir of files, or not at all."""

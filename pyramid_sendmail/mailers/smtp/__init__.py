"""SMTP and LMTP."""

from .mailer import SMTPMailer

__all__ = ['SMTPMailer']

"""One attempt: claimed mail through a session."""

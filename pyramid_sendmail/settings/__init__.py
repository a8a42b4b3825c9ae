"""The mail settings."""

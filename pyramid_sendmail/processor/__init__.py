"""The queue processor."""

"""What becomes of a message at commit."""

"""One test, at least, for each finding on what goes wrong in mail packages, by its number."""

"""Attempts to escape from a sandbox, as small programs, and a judge that says which were contained."""

"""Wakes: hints between processes that a scope has moved."""

"""Use cases of the service: no HTTP, no SQL text."""

"""The use cases: push, pull, stream, membership, journal, retention. No HTTP, no SQL text."""

"""The Tidemark sync service."""

"""Tidemark measured beside the limit of the same machine and database, in the same run."""

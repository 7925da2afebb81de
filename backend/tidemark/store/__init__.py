"""The port to a database (`base`) and its implementations."""

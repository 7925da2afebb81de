"""`tide`, the command-line peer: works offline, syncs when it can."""

"""The sync protocol as pure functions and values: no await, clock, chance, I/O or logging."""

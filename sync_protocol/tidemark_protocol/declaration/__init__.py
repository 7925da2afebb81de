"""Reading a schema file into the values of `model` (SPEC 10), with every fault named by its path."""

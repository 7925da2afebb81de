"""Commands of `tidemark` that look after a database: each module holds its click commands, which `cli` registers."""

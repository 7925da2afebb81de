"""Code from a declaration: `tidemark codegen`."""

"""The commands of `tide`, by what they are about."""

"""The tables that stores work on: what they are to be, what they are, and how one becomes the other."""

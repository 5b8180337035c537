"""The command line: one module per command. Each calls the public API and formats what it returns; nothing is computed here.

Everything heavy (numba, polars) is imported inside the commands, so that help and usage errors answer at once.
"""

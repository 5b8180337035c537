"""The process's side of memory."""

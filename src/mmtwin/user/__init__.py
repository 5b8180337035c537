"""The process's side of memory: glibc's malloc."""

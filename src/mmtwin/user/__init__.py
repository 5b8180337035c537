"""The process's side of memory: areas, faults, and glibc's malloc."""

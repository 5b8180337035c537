"""The kernel's side, one module per kernel file. State is in `tables`; every rule is a function over it."""

"""Which allocator and flags each call site should use, why, and what that would change: `advise.advise`."""

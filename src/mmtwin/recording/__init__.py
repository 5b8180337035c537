"""What was recorded of a real machine: snapshots, events and where they come from (`model`), one file on disk (`store`)."""

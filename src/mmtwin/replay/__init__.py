"""Replaying recordings: `placement` puts the requests in their true order, `engine` lets the twin answer them, `check` compares."""

"""Runs held against each other: what differs, what it bought, how sure that is, and what it cost."""

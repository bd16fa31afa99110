"""Analysis: what experiments have found, and what a policy would have found, from the log of decisions and events."""

"""Aside: what a change would do, found by asking logged requests again. Nothing of it is in force."""

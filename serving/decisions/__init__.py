"""Decisions: which variant of a content somebody gets now, which alerts are due for them, and how both are learned."""

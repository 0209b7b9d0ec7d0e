"""Somebody's hand in the middle of a move: processes that stand still, files that are changed."""

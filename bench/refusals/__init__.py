"""Calls that are refused: what they cost, whom they hold up, and what their time tells."""

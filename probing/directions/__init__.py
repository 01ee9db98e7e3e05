"""Formulas of directions in hidden states: how they are found, judged and chosen."""

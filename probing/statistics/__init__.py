"""Resampling and validation on arrays: bootstrap, permutation tests, folds of nested cross-validation, groups.

Random numbers for different purposes are independent: each purpose has a generator of its own,
``numpy.random.default_rng([seed, stream])``. The streams in use are 1 (folds), 2 (bootstrap weights), 3 (label flips),
4 (shuffled pairs), 5 (random directions), 6 (groups with a distractor), 7 (permuted labels) and 9 (rows in a picture).
"""

"""Resampling and validation on arrays: bootstrap, permutation tests, folds of nested cross-validation, groups.

What is drawn for one purpose is independent of what is drawn for another: every draw has a generator of its own,
``numpy.random.default_rng([seed, stream])``. Taken are the streams 1 (folds), 2 (bootstrap weights), 3 (label flips),
4 (shuffled pairs), 5 (random directions), 6 (groups with a distractor), 7 (permuted labels) and 9 (rows in a picture).
"""

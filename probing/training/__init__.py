"""Callbacks of trainers: measurements of a model while it is trained, which leave the training as it is."""

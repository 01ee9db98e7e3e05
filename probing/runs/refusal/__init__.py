"""``probing refusal``: a family of jobs on the direction by which a model refuses."""

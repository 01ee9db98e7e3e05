"""The parts of a run, each saved when it is made: directions, passes over the pairs, the pilot, null draws."""

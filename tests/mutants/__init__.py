"""Mutation testing: `make mutants` changes the core in small ways and counts how often its tests notice.

`by_hand` reads the mutants that somebody wrote down, `samples` draws others with cosmic-ray, `trees` runs the
tests, `score` prints the result.
"""

"""The configuration: its files, its values with their units, and their problems.

This package checks values without using them. `posctl doctor` checks whether they work on a machine.
"""

"""The configuration: its files, its values with their units, and the problems found in them.

It does not know what the values are used for. `posctl doctor` checks whether they work on a machine.
"""

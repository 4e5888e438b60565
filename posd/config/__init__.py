"""The configuration: its files, its values and their units, and what is wrong with them.

It knows no other part of posd. Whether a configuration works on a machine is judged elsewhere."""

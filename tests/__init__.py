"""Tests of posd, one file for each module; run them with `python -m twisted.trial tests`."""

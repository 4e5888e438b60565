"""Retention, erasure, audit and diagnosis of an installation.

Code that runs for every order does not belong here.
"""

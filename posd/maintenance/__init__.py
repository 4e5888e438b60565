"""Retention, erasure, audit, and diagnosis of an installation.

What the daemon does for each order does not belong here.
"""

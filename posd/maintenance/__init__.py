"""Retention, erasure, audit and diagnosis of an installation."""

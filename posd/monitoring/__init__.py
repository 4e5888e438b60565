"""Metrics, log formats and health of a node.

Components report to `posd.monitoring.counters`. This package does not change their behaviour.
"""

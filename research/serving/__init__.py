"""Serves a SavedModel; imports nothing of what trains one."""

"""Layers that multiply by packed weights."""

"""Learning beside an optimizer."""

"""Learning around the steps of an optimizer."""

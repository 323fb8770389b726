"""From a finalized model to a faster one: measure each layer's candidates, exchange what is faster, check the whole."""

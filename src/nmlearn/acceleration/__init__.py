"""From a finalized model to a faster one: measure every layer's ways, exchange what is faster, check the whole."""

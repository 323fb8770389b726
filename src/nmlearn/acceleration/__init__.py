"""From a finalized model to a faster one: time each layer's candidates, replace layers that gain, check the whole."""

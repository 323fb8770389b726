"""The compiled library and what calls it: training passes and the removal of combinations."""

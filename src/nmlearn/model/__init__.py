"""What is in a model: layers and their weights by name, the plan, shards."""

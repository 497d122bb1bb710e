"""What the operator wants of this node: the table of settings, reading them, and logging as they say."""

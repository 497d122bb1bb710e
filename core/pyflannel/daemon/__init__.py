"""The running daemon: what starts and ends its threads, its loop, and what it leaves for the rest of the node."""

"""What the daemon shows of itself: the status document, the health port, metrics, a page."""

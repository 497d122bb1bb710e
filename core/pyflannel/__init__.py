"""pyflannel: a plugin-based overlay network daemon for Linux."""

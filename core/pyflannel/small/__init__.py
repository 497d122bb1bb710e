"""Small things that several rooms need: retrying, secrets, digests, short files, sockets, pings, child processes."""

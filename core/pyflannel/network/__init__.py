"""The network as values: its document, leases and subnets, the underlay. Pure; nothing here does I/O."""

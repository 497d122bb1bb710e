"""From leases to what this node should hold: judging each, asking the backend, and telling its data plane."""

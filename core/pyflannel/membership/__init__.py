"""Membership: who this node is, which subnets it gets, and keeping the lease on them."""

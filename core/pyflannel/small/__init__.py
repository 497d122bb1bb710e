"""Small things that several rooms need, each a module without knowledge of the others."""

"""Real store servers for the lab, the tests and the benchmarks: found, started, waited for, and stopped by pid."""

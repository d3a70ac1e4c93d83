"""Benchmarks, and the commands that run and tabulate them: report, peers, memory, tables; NOTES.md explains them."""

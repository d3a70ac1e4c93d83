"""What is measured: speed on a GPU (`pytest bench`), peers on a CPU, memory, and quality after equal CPU time."""

"""Short scripts on the unchanged core: posteriors, paths, inversion, signals, memorisation, dead leaves, and 2015."""

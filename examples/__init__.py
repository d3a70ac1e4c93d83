"""Short scripts on the unchanged core: inpainting, interpolation, inversion, 1-D signals, memorisation, dead leaves, 2015."""

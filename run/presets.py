"""Recipes of the sources, each as what it changes in train.py's defaults: python train.py --preset cars64.

Where we differ: their optimizer is Adam with betas 0.9 and 0.99, every average is ramped, pictures are cropped, not
squeezed, and the networks are the nearest of unet.CONFIGS. A recipe without an average has ema 0, one without
clipping clip inf, one without labels null 1.
"""

import math

PLAIN = {"target": "eps", "schedule": "linear", "null": 1., "optimizer": "adam", "warmup": 0, "final": 1.,
         "clip": math.inf, "ema": 0.}
CIFAR10 = PLAIN | {"data": "cifar10", "flip": True, "network": "cifar10", "batch": 128, "ema": 0.9999}
IMPROVED = CIFAR10 | {"network": "improved-cifar10", "loss": "hybrid", "schedule": "cosine", "T": 4000, "lr": 1e-4,
                      "steps": 500000}
IMAGENET64 = PLAIN | {"data": "imagenet64", "size": "64", "network": "imagenet64", "loss": "hybrid",
                      "schedule": "cosine", "steps": 600000, "save_every": 10000}

PRESETS = {
    # our own, of weights/fashion.safetensors; Debian's package dataset-fashion-mnist has the pictures
    "fashion": {"data": "fashion-mnist:/usr/share/datasets/fashion-mnist", "network": "fashion",
                "ema": 0.999, "steps": 20000, "dtype": "bf16"},
    # a video tutorial's notebook: 100 epochs of 126 batches; 300 steps leave 0.036 bits/dim in x_T, as it will say
    "cars64": PLAIN | {"data": "stanford-cars", "size": "64", "flip": True, "network": "cars64", "T": 300, "batch": 128,
                       "lr": 1e-3, "steps": 12600},
    # an article's MNIST, padded to 32 x 32: 75 epochs of 937 batches
    "mnist32": PLAIN | {"data": "mnist", "size": "32", "fit": "pad", "network": "mnist32", "lr": 2e-5,
                        "ema": 0.9999, "steps": 70275},
    # denoising-diffusion-pytorch on a folder: 8 pictures, accumulated twice; ema 0.995 at every tenth step
    "folder128": PLAIN | {"data": "photos", "size": "128", "flip": True, "network": "folder128", "loss": "l1",
                          "schedule": "sigmoid", "batch": 16, "accumulate": 2, "lr": 8e-5, "ema": 0.9995, "clip": 1.,
                          "steps": 10000},
    # Ho et al. 2020, appendix B
    "cifar10": CIFAR10 | {"lr": 2e-4, "warmup": 5000, "clip": 1., "steps": 800000},
    # Nichol & Dhariwal 2021: L_hybrid, and L_vlb with importance sampling of t
    "improved-cifar10": IMPROVED,
    "improved-cifar10-bound": IMPROVED | {"loss": "bound", "sampling": "importance"},
    # Diffusion_models_from_scratch: first without labels; later with them, for guidance, and eight times the batch
    "imagenet64": IMAGENET64 | {"T": 4000, "lr": 2e-4, "batch": 129, "accumulate": 3},
    "imagenet64-guided": IMAGENET64 | {"null": 0.2, "lr": 3e-4, "batch": 1024, "accumulate": 8},
}

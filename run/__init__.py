"""What surrounds a run: command lines, checkpoints, logs, processes, and the pictures that are written.

first.py: --help and Ctrl-C before torch. cli.py: command lines from dataclasses. tensors.py: files of tensors.
checkpoint.py: one file per run. state.py: a training run as a value. resume.py: resuming it. folder.py: its lock, log
and curves. processes.py: torchrun. importance.py: importance sampling of t. memory.py: other dtypes, recomputed
activations. presets.py: published recipes. labels.py: what to sample. pictures.py: grids, strips, films. arrays.py: all
that sample.py writes. markdown.py: tables.
"""

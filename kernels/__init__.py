"""Compiled kernels, each equal to the plain lines of unet.py or samplers.py; compile.py applies them from outside."""

from kernels.group_norm_silu import group_norm_silu, group_norm_silu_plain
from kernels.sampling_step import sampling_step

__all__ = ["group_norm_silu", "group_norm_silu_plain", "sampling_step"]

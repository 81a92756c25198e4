"""Triton kernels for the operations of ``fastenh.ops``. Imports torch and triton alone.

One file an operation: the kernel, then the function that launches it. Names in kernels: ``p_`` a pointer, ``b_`` a
block of values, ``o_`` offsets, ``m_`` a mask, ``s_`` a stride. Arithmetic is in float32, with one cast at the store.
"""

import triton

from fastenh_kernels.axis_attention import axis_attention, axis_attention_forward
from fastenh_kernels.axis_attention_backward import axis_attention_backward
from fastenh_kernels.axis_layer import axis_layer
from fastenh_kernels.axis_layer_backward import axis_layer_backward, axis_layer_forward
from fastenh_kernels.complex_mask import complex_mask
from fastenh_kernels.complex_mask_backward import complex_mask_backward
from fastenh_kernels.encoder_front import encoder_front
from fastenh_kernels.encoder_front_backward import encoder_front_backward
from fastenh_kernels.mask_head import mask_head
from fastenh_kernels.mask_head_backward import mask_head_backward
from fastenh_kernels.time_taps import decoder_taps, encoder_conv
from fastenh_kernels.time_taps_backward import decoder_taps_backward, encoder_conv_backward
from fastenh_kernels.upsampled_moments import combined_moments, upsampled_moments, upsampled_moments_backward

INTERPRETED = triton.knobs.runtime.interpret  # decided when the kernels are decorated, that is now

__all__ = [
    "INTERPRETED",
    "axis_attention",
    "axis_attention_backward",
    "axis_attention_forward",
    "axis_layer",
    "axis_layer_backward",
    "axis_layer_forward",
    "combined_moments",
    "complex_mask",
    "complex_mask_backward",
    "decoder_taps",
    "decoder_taps_backward",
    "encoder_conv",
    "encoder_conv_backward",
    "encoder_front",
    "encoder_front_backward",
    "mask_head",
    "mask_head_backward",
    "upsampled_moments",
    "upsampled_moments_backward",
]

"""The operations of dual-path models on spectra: one function each, whichever implementation runs.

Shapes: B clips, T frames, F bands or bins, C channels. Activations are (B, T, F, C) with C contiguous, so that both
axes of a dual path are reached by strides, and nothing is transposed or copied. ``backend.py`` says what runs where.
Needs torch; Triton where there is one.
"""

from fastenh_kernels.backend import BackendError as BackendError
from fastenh_kernels.backend import use_backend as use_backend
from fastenh_kernels.operations.affine_silu import affine_silu as affine_silu
from fastenh_kernels.operations.axis_attention import axis_attention as axis_attention
from fastenh_kernels.operations.axis_layer import AxisLayerWeights as AxisLayerWeights
from fastenh_kernels.operations.axis_layer import axis_layer as axis_layer
from fastenh_kernels.operations.band_convolution import band_convolution as band_convolution
from fastenh_kernels.operations.band_decoder import band_decoder as band_decoder
from fastenh_kernels.operations.band_encoder import band_encoder as band_encoder
from fastenh_kernels.operations.band_map import band_map as band_map
from fastenh_kernels.operations.complex_mask import complex_mask as complex_mask
from fastenh_kernels.operations.compressed_front import compressed_front as compressed_front
from fastenh_kernels.operations.compressed_mask import compressed_mask as compressed_mask
from fastenh_kernels.operations.decoder_taps import decoder_taps as decoder_taps
from fastenh_kernels.operations.encoder_conv import encoder_conv as encoder_conv
from fastenh_kernels.operations.encoder_front import encoder_front as encoder_front
from fastenh_kernels.operations.front_convolution import front_convolution as front_convolution
from fastenh_kernels.operations.mask_head import mask_head as mask_head
from fastenh_kernels.operations.norm_taps import norm_taps as norm_taps
from fastenh_kernels.operations.spectral_loss import spectral_loss as spectral_loss
from fastenh_kernels.operations.time_layer import time_layer as time_layer
from fastenh_kernels.operations.upsampled_moments import upsampled_moments as upsampled_moments

"""Fused split-and-shuffle 3D convolutions for PyTorch.

split_shuffle_conv3d, upfirdn3d     the operator and StyleGAN2's resampling, as functions
SplitShuffleConv3d                  the operator as a module
convert, from_conv3d                nn.Conv3d layers of other people's models swapped for it
inflate_weight, depth_profile       2D convolution weights to 3D
backends                            what can compute here, and why something cannot
"""

from ssconv.backends import backends
from ssconv.convert import ConvertReport, convert, from_conv3d
from ssconv.functional import replicate_depth, split_shuffle_conv3d, upfirdn3d
from ssconv.inflate import depth_profile, inflate_weight
from ssconv.layers import SplitShuffleConv3d
from ssconv.spec import KERNEL_SETS

__version__ = "0.1.0"

__all__ = [
    "KERNEL_SETS",
    "ConvertReport",
    "SplitShuffleConv3d",
    "backends",
    "convert",
    "depth_profile",
    "from_conv3d",
    "inflate_weight",
    "replicate_depth",
    "split_shuffle_conv3d",
    "upfirdn3d",
]

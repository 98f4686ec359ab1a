"""Fused split-and-shuffle 3D convolutions for PyTorch.

split_shuffle_conv3d, upfirdn3d     the operator and StyleGAN2's resampling, as functions
SplitShuffleConv3d                  the operator as a module
convert, from_conv3d                replace the nn.Conv3d layers of a model by it
convert_state_dict                  an older dense checkpoint of such a model for the converted one
export_mode                         plain PyTorch operators, to export a model to ONNX
inflate_model                       makes a 2D network 3D, its weights spread along depth
inflate_weight, depth_profile       the same for one weight
backends                            the backends, which are available, and why others are not
keep_freed_memory                   on a CPU: large activations cost no page faults in each training step
verify, choices                     on a GPU: checks the kernels; lists what serves each kind of call, and its rivals
"""

from ssconv.allocation import keep_freed_memory
from ssconv.backend.choice import choices
from ssconv.backend.dispatch import backends
from ssconv.backend.trust import VerifyReport, verify
from ssconv.convert import ConvertReport, convert, convert_state_dict, from_conv3d
from ssconv.functional import export_mode, replicate_depth, split_shuffle_conv3d, upfirdn3d
from ssconv.inflate import depth_profile, inflate_weight
from ssconv.inflate_model import InflateReport, inflate_model
from ssconv.layers import SplitShuffleConv3d
from ssconv.spec import KERNEL_SETS

__version__ = "0.2.0"

__all__ = [
    "KERNEL_SETS",
    "ConvertReport",
    "InflateReport",
    "SplitShuffleConv3d",
    "VerifyReport",
    "backends",
    "choices",
    "convert",
    "convert_state_dict",
    "depth_profile",
    "export_mode",
    "from_conv3d",
    "inflate_model",
    "inflate_weight",
    "keep_freed_memory",
    "replicate_depth",
    "split_shuffle_conv3d",
    "upfirdn3d",
    "verify",
]

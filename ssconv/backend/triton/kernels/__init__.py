"""The operator in Triton, device code only; `launch` runs it. One can read here how the operator works.

conv        fprop and dgrad, all branches, shuffle and epilogue in one kernel
wgrad       weight gradients
epilogue    the epilogue by itself, and its backward
upfirdn     resampling

Tensors are read through their strides, so any layout will do. Results are channels_last_3d. A branch s owns the
channels s*C/S .. (s+1)*C/S ("branch order"); after the shuffle its channel j is j*S + s. Sums are taken in float32.

All branches of a tile are computed in one program, so that the shuffle is an interleaving in registers and a
contiguous store: `common.interleave`. The voxels of a tile form a box (samples, D, H, W) of powers of two: neighbouring
taps find each other's inputs in the cache, and a tensor descriptor (TMA) can fetch the box whole, zeros outside
included.
"""

from ssconv.backend.triton.kernels.conv import conv_kernel
from ssconv.backend.triton.kernels.epilogue import epilogue_backward_kernel, epilogue_kernel
from ssconv.backend.triton.kernels.upfirdn import upfirdn_kernel
from ssconv.backend.triton.kernels.wgrad import wgrad_kernel

__all__ = ["conv_kernel", "epilogue_backward_kernel", "epilogue_kernel", "upfirdn_kernel", "wgrad_kernel"]

"""The six registered ops `torch.ops.ssconv.*`: schemas, fakes, kernels and derivatives of any order.

forward, input_grad, weight_grad     the branches' convolutions, with the epilogue, and their derivatives (conv.py)
epilogue, epilogue_backward          what follows them (epilogue.py)
upfirdn                              resampling (upfirdn.py)

Each function here takes tensors, then a `Geometry` and an `Epilogue` where the op has them, then the backend's name.
"""

from ssconv.ops.conv import forward, input_grad, weight_grad
from ssconv.ops.epilogue import epilogue, epilogue_backward
from ssconv.ops.upfirdn import upfirdn

__all__ = ["epilogue", "epilogue_backward", "forward", "input_grad", "upfirdn", "weight_grad"]

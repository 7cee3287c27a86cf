"""Makes the real Composer importable beside a CPU build of a torch that is newer than it knows.

torchvision, which Composer imports, is installed, but its compiled part is of a CUDA build: the two
operators of it that its Python part looks for at import are declared here. Composer 0.14 imports a
name of torch that has moved since, and loads checkpoints as torch did then.
"""

import os
import warnings

# Composer 0.14 calls torch.load without weights_only, whose default has changed.
os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
os.environ["OMP_NUM_THREADS"] = "1"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import torch.amp.grad_scaler
    import torch.cuda.amp.grad_scaler

    OPERATORS = torch.library.Library("torchvision", "DEF")
    OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    MOVED = "_refresh_per_optimizer_state"
    setattr(torch.cuda.amp.grad_scaler, MOVED, getattr(torch.amp.grad_scaler, MOVED))

    import composer

__all__ = ["composer"]

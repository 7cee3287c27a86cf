"""Makes the real Composer importable beside a CPU build of torch.

Composer imports torchvision, which does not have a CPU build for every torch, and the client of a
commercial service. Checkpoints need neither of them: both get empty stand-ins.
"""

from __future__ import annotations

import sys
import types

import torchmetrics  # noqa: F401  looks for torchvision: import it before the stand-in

_TORCHVISION = {
    "torchvision": (),
    "torchvision.transforms": (),
    "torchvision.transforms.functional": (),
    "torchvision.datasets": ("VisionDataset",),
    "torchvision.utils": ("draw_segmentation_masks",),
    "torchvision.ops": ("box_convert",),
    "torchvision.models": (),
    "torchvision.models.resnet": ("Bottleneck", "ResNet"),
}


def _add(name: str, attributes: tuple[str, ...] = ()) -> None:
    module = types.ModuleType(name)
    module.__path__ = []
    for attribute in attributes:
        setattr(module, attribute, type(attribute, (), {"__module__": name}))
    sys.modules[name] = module
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, module)


if "torchvision" not in sys.modules:
    for name, attributes in _TORCHVISION.items():
        _add(name, attributes)
if "mcli" not in sys.modules:
    _add("mcli")

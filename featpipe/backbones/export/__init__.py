"""Turn a torch model into a backbone file; the only package that imports torch."""

from featpipe.backbones.export.module import export_module

__all__ = ["export_module"]

"""Arithmetic on the weights of neural networks: zoos of checkpoints, their geometry, their mixes.

import wspace as ws

zoo = ws.open_zoo("runs/*", base="base")
gram = ws.gram(zoo)
ws.merge(zoo, ws.uniform(len(zoo)), "soup")
"""

import lazy_loader

# names are imported on first use (the list is __init__.pyi): a merge of files does without torch
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Backbones: thirteen pretrained networks, their blocks, weights and freeze selectors.

Importing this package does not import TensorFlow; building a network does.
"""

from __future__ import annotations

from tlearn.backbones.build import Backbone, LayerRange, build_backbone
from tlearn.backbones.check import check_backbone
from tlearn.backbones.naming import stable_names, variable_keys
from tlearn.backbones.select import Unfreeze, check_unfreeze, parse_unfreeze, trainable_layers
from tlearn.backbones.specs import SPECS, BackboneSpec, Block, Preprocess, get_spec, register_backbone
from tlearn.backbones.weight_files import load_weights, load_weights_npz, save_weights_npz
from tlearn.backbones.weights import check_weights

__all__ = [
    "SPECS",
    "Backbone",
    "BackboneSpec",
    "Block",
    "LayerRange",
    "Preprocess",
    "Unfreeze",
    "build_backbone",
    "check_backbone",
    "check_unfreeze",
    "check_weights",
    "get_spec",
    "load_weights",
    "load_weights_npz",
    "parse_unfreeze",
    "register_backbone",
    "save_weights_npz",
    "stable_names",
    "trainable_layers",
    "variable_keys",
]

"""A dictionary beside the model: its copy on the device that computes, made once."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import torch

from vision_sae.dictionaries.protocol import Dictionary, SiteDictionary
from vision_sae.transfers import is_at

_COPIES: WeakKeyDictionary[Dictionary, dict[torch.device, Dictionary]] = WeakKeyDictionary()
_LOCK = threading.Lock()


def resident(dictionary: Dictionary, device: torch.device) -> Dictionary:
    """``dictionary`` with its weights on ``device``: itself where they are there, else a copy.

    The copy is kept as long as ``dictionary``, so that calls of a server copy the weights once. A
    bundle's own dictionary stays in host memory, where searches and labels read its rows.
    """
    if is_at(dictionary.bias, device):
        return dictionary
    with _LOCK:
        copies = _COPIES.setdefault(dictionary, {})
        if device not in copies:
            with torch.inference_mode(False):  # a later call may need gradients
                copies[device] = dictionary.to(device)
        return copies[device]


def resident_at(site_dictionary: SiteDictionary, device: torch.device) -> SiteDictionary:
    """`resident` for a dictionary with its site."""
    return SiteDictionary(resident(site_dictionary.dictionary, device), site_dictionary.site)

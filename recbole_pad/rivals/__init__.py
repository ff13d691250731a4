"""Text-aware sequential models that PAD is compared with: own code, on PAD's data path, backbones and losses."""

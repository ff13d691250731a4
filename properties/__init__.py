"""Property files of the plugin: `model/`, `dataset/`, `protocol/`. A package, so that every kind of install finds them."""

"""Property files of the plugin: `model/`, `dataset/`, `protocol/`. A package, so that every install finds them."""

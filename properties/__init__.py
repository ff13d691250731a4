"""Property files of the plugin: `model/`, `base/`, `dataset/`, ... A package, so that every install finds them."""

"""The maths: tensors in, tensors out; no RecBole, no config, no files."""

"""The version of the product, which packages, images, the API and `/readyz` share."""

# A constant, because the images hold the packages without the metadata that `importlib.metadata` would read.
VERSION = "0.1.0"

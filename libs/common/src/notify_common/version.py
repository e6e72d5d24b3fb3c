"""The product version, which is shared by packages, images, the API and `/readyz`."""

# This is a constant, because the packages in the images lack the metadata that `importlib.metadata` would read.
VERSION = "0.1.0"

"""Send the rows of a CSV file, each exactly once, however often the import is interrupted."""

"""Compare two commits: CPU and latencies of the whole service, measured alternately on the same machine."""

"""The scan of S5: modes that all channels share, between two matrix products. Used by `linear_scan`."""

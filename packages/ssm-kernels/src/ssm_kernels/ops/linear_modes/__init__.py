"""From continuous modes to the weights of the linear scans, in one operator. Used by `linear_scan`."""

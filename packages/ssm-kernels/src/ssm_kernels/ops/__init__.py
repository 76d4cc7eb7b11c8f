"""The operators, one folder each: api -> autograd -> schema -> {reference, torch_impl, kernels}."""

"""Networks, their pretrained weights, and which of their stages are trained."""

"""Networks, their pretrained weights, and what of them is trained."""

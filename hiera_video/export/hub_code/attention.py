"""Attention of the blocks."""

import torch.nn.functional as F


def attend(q, k, v):
    """softmax(q k^T / sqrt(D)) v. q [R, H, N, D], k and v [R, H, M, D] -> [R, H, N, D]"""
    return F.scaled_dot_product_attention(q, k, v)

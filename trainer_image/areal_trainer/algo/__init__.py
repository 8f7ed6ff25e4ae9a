"""The algorithm: small pure functions over tensors. Imports torch only.

Packed layout: the B sequences of a batch are concatenated in 1-D tensors over T tokens; `cu_seqlens` (B + 1) holds
their start positions. Everything is aligned to tokens: index t of a log-prob tensor is the log-prob of token t given
all earlier ones. The response tokens alone (mask all True, `cu_seqlens` of their counts) are a packed layout too.
"""

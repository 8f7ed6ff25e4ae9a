"""The algorithm: small pure functions over tensors. Imports torch only.

Packed layout: the B sequences of a batch lie end to end in 1-D tensors over T tokens; `cu_seqlens` (B + 1) holds where
each starts. Everything is aligned to the token: index t of a log-prob tensor belongs to token t given those before it.
The response tokens alone (all masked in, `cu_seqlens` of their counts) are a packed layout too.
"""

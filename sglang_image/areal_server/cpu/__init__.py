"""What SGLang needs where there is no GPU: a stand-in for its compiled kernels, and attention that batches.

Imports nothing by itself: `stand_ins` is put on the path of the server's processes, `plugin` is loaded by SGLang.
"""

"""SGLang's CPU path: stubs for its compiled kernels, and batched attention.

`stubs` is added to PYTHONPATH of the server's processes; SGLang loads `plugin` itself.
"""

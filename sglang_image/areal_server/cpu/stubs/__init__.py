"""This folder is added to PYTHONPATH of SGLang's processes; its modules are imported as top-level modules."""

"""A folder that is put on the path of SGLang's processes; its modules are imported by their own names."""

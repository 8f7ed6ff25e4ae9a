"""Agents that play environments of other projects. They import nothing of this one."""

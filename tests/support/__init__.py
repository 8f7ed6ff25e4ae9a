"""Helpers shared by several test folders, among them cheap substitutes for real processes."""

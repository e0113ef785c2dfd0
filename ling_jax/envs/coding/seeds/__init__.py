"""Modules that repositories are made of: plain code and its tests, none of which knows another."""

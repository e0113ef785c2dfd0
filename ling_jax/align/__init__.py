"""Alignment: what each stage of the report rewards and distils."""

"""Programs that run inside a box. Their text is sent there; nothing here imports them."""
